"""A small potential on graphs: energies of molecules, and forces as their derivative taken inside the forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

SIZES = {"train": [(2, 3, 4), (4, 5), (3, 3, 5, 2)], "validation": [(6,), (2, 2, 5)], "test": [(3, 7)]}


class Potential(nn.Module):
    """One round of messages: radial weights times scalars and directions, a sum over neighbours."""

    def __init__(self, channels: int = 4, radial: int = 5) -> None:
        super().__init__()
        self.channels = channels
        features = f"{channels}x0e+{channels}x1o"
        self.embedding = nn.Embedding(3, channels)
        self.radial = nn.Sequential(nn.Linear(radial, 8), nn.SiLU(), nn.Linear(8, 2 * channels))
        self.mix = o3.Linear(features, features)
        self.readout = nn.Sequential(nn.Linear(2 * channels, 8), nn.SiLU(), nn.Linear(8, 1))
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(0.5, 3.0, radial))

    def energy(self, positions: Tensor, species: Tensor, edges: Tensor, graph: Tensor, ptr: Tensor) -> Tensor:
        """Energy per molecule, shape (molecules,)."""
        sender, receiver = edges[0], edges[1]
        vectors = positions[receiver] - positions[sender]
        lengths = (vectors.square().sum(1) + 1e-8).sqrt()
        basis = torch.exp(-(lengths[:, None] - self.centres).square()) * torch.exp(-lengths)[:, None]
        scalars, weights = (self.radial(basis) * self.embedding(species)[sender].repeat(1, 2)).chunk(2, 1)
        directions = (vectors / lengths[:, None])[:, None]
        messages = torch.cat([scalars, (weights[:, :, None] * directions).flatten(1)], 1)
        nodes = messages.new_zeros(positions.shape[0], messages.shape[1]).index_add(0, receiver, messages)
        scalars, others = self.mix(nodes).split([self.channels, 3 * self.channels], 1)
        norms = others.unflatten(1, (self.channels, 3)).square().sum(2)
        per_node = self.readout(torch.cat([scalars, norms], 1)).squeeze(1)
        return per_node.new_zeros(ptr.shape[0] - 1).index_add(0, graph, per_node)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        positions = batch["positions"].detach().requires_grad_(True)
        energy = self.energy(positions, *(batch[name] for name in ("species", "edges", "graph", "ptr")))
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return {"energy": energy, "forces": self.forces(gradient)}

    def forces(self, gradient: Tensor) -> Tensor:
        """Forces, shape (atoms, 3)."""
        return -gradient


class WrongForces(Potential):
    """The last component has the wrong sign: neither a gradient nor a vector."""

    def forces(self, gradient: Tensor) -> Tensor:
        return gradient * gradient.new_tensor([-1.0, -1.0, 1.0])


class PotentialTask:
    """Molecules of a few atoms; targets are energies of springs and their forces."""

    input_names = ()
    units = {"energy": "eV", "forces": "eV/Å"}

    def __init__(self, network: type[Potential] = Potential) -> None:
        self.network = network

    def model(self) -> nn.Module:
        return self.network()

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        for index, counts in enumerate(SIZES[split]):
            yield molecules(counts, 10 * list(SIZES).index(split) + index)

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(outputs["energy"], batch["energy"]) + functional.mse_loss(
            outputs["forces"], batch["forces"]
        )

    def act(self, g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, **{name: batch[name] @ g.T.to(batch[name]) for name in ("positions", "forces")}}

    def act_output(self, g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**outputs, "forces": outputs["forces"] @ g.T.to(outputs["forces"])}


def molecules(counts: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    """A batch of molecules in which every atom sees every other one of its molecule."""
    generator = torch.Generator().manual_seed(seed)
    positions = 1.2 * torch.randn(sum(counts), 3, generator=generator)
    graph = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    pairs = (graph[:, None] == graph) & ~torch.eye(len(graph), dtype=torch.bool)
    centred = torch.cat([part - part.mean(0) for part in positions.split(counts)])
    return {
        "positions": positions,
        "species": torch.randint(3, (sum(counts),), generator=generator),
        "edges": pairs.nonzero().T.contiguous(),
        "graph": graph,
        "ptr": torch.tensor([0, *counts]).cumsum(0),
        "energy": torch.stack([part.square().sum() / 2 for part in centred.split(counts)]),
        "forces": -centred,
    }


def make_task() -> Any:
    return PotentialTask()
