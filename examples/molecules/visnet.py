"""ViSNet of torch_geometric on molecular dynamics of ethanol: a task file, and a script that trains the checkpoint.

Run it in any folder: ``python PATH/visnet.py``. It writes ``ethanol_gfn1.npz`` and ``ethanol_gfn2.npz`` in the format
of MD17, and ``visnet.pt``, the state dict of a small network trained on the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn.models import ViSNet

from surgeon_adapters.atoms.md17 import Sizes, read_md17, split_frames

SETTINGS = {
    "lmax": 1,
    "num_heads": 4,
    "num_layers": 3,
    "hidden_channels": 32,
    "num_rbf": 16,
    "max_z": 10,
    "cutoff": 5.0,
    "derivative": True,
}


class AllDistances(nn.Module):
    """Neighbours within a cutoff, in place of ViSNet's own search, which needs pyg-lib; it has no weights."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return edges (2, e), their lengths (e,) and vectors (e, 3), each atom with itself among them."""
        with torch.no_grad():
            near = torch.cdist(pos, pos) < self.cutoff
        edges = (near & (batch[:, None] == batch)).nonzero().T.flip(0)
        vectors = pos[edges[0]] - pos[edges[1]]
        others = edges[0] != edges[1]  # the length of a zero vector has no derivative
        lengths = vectors.new_zeros(len(vectors)).masked_scatter(others, vectors[others].norm(dim=-1))
        return edges, lengths, vectors


def network() -> ViSNet:
    """Return ViSNet with forces, with the neighbour search above."""
    model = ViSNet(**SETTINGS)
    model.representation_model.distance = AllDistances(SETTINGS["cutoff"])
    return model


class EthanolTask:
    """Energies (kcal/mol, relative to their mean) and forces (kcal/mol/A) of the frames of an MD17 file."""

    output_names = ("energy", "forces")
    primary_metric = "force_mae"

    def __init__(self, data: str | Path = "ethanol_gfn2.npz", batch_size: int = 8) -> None:
        self.batch_size = batch_size
        frames = read_md17(data)
        splits = split_frames(len(frames), Sizes())
        energies = (frames.energies - frames.energies[splits["train"]].mean()).float()  # in float64 until here
        graphs = [
            Data(z=frames.numbers, pos=pos, energy=energy, forces=forces)
            for pos, energy, forces in zip(frames.positions.float(), energies, frames.forces.float(), strict=True)
        ]
        self.graphs = {split: [graphs[index] for index in chosen.tolist()] for split, chosen in splits.items()}

    def model(self) -> nn.Module:
        """Build the network, untrained."""
        return network()

    def batches(self, split: str, seed: int) -> Iterable[Data]:
        """Return PyG's own loader; the training frames come in another order for each seed."""
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(self.graphs[split], self.batch_size, shuffle=split == "train", generator=generator)

    def forward(self, model: nn.Module, batch: Data) -> dict[str, Tensor]:
        """Return energies (b,) and forces (n, 3); ViSNet sets ``requires_grad`` on the positions that it is given."""
        with torch.enable_grad():
            energy, forces = model(batch.z, batch.pos.clone(), batch.batch)
        return {"energy": energy.squeeze(-1), "forces": forces}

    def loss(self, outputs: dict[str, Tensor], batch: Data) -> Tensor:
        """Mean squares, of energies per molecule and of components of forces."""
        return sum((outputs[name] - batch[name]).square().mean() for name in outputs)

    def metrics(self, outputs: dict[str, Tensor], batch: Data) -> dict[str, tuple[Tensor, int]]:
        """Mean absolute errors."""
        errors = {name: (outputs[name] - batch[name]).abs() for name in outputs}
        return {
            "energy_mae": (errors["energy"].sum(), errors["energy"].numel()),
            "force_mae": (errors["forces"].sum(), errors["forces"].numel()),
        }

    def act(self, g: Tensor, batch: Data) -> Data:
        """Rotate or reflect positions and forces."""
        moved = batch.clone()
        moved.pos, moved.forces = (x @ g.T.to(x) for x in (batch.pos, batch.forces))
        return moved

    def act_output(self, g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Energies are invariant, forces are vectors."""
        return {**outputs, "forces": outputs["forces"] @ g.T.to(outputs["forces"])}


make_task = EthanolTask


def pretrain(data: Path, epochs: int) -> nn.Module:
    """Train on a file."""
    torch.manual_seed(0)
    model, task = network(), EthanolTask(data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in task.batches("train", epoch):
            optimizer.zero_grad()
            task.loss(task.forward(model, batch), batch).backward()
            optimizer.step()
        schedule.step()
    return model


if __name__ == "__main__":
    from md17_files import write_both

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path.cwd())
    options = parser.parse_args()
    write_both(options.output)
    torch.save(pretrain(options.output / "ethanol_gfn1.npz", options.epochs).state_dict(), options.output / "visnet.pt")
