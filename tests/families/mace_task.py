"""Energies of molecules for MACE potentials, without forces: copied as the task file of a user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

SIZES = ((3, 2), (4, 3, 2), (2, 5, 3, 3), (6, 2, 4, 3, 2))


def molecules(counts: Sequence[int], seed: int) -> dict[str, Tensor]:
    """Molecules with these numbers of atoms, all of whose atoms see each other."""
    generator = torch.Generator().manual_seed(seed)
    starts, atoms = torch.tensor([0, *counts]).cumsum(0), sum(counts)
    spans = [range(first, first + count) for first, count in zip(starts.tolist(), counts, strict=False)]
    pairs = [(i, j) for span in spans for i in span for j in span if i != j]
    edges = torch.tensor(pairs).T.contiguous()
    species = torch.randint(3, (atoms,), generator=generator)
    return {
        "positions": 1.2 * torch.randn(atoms, 3, generator=generator),
        "node_attrs": nn.functional.one_hot(species, 3).float(),
        "edge_index": edges,
        "shifts": torch.zeros(edges.shape[1], 3),
        "unit_shifts": torch.zeros(edges.shape[1], 3),
        "cell": torch.zeros(3 * len(counts), 3),
        "batch": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        "ptr": starts,
        "head": torch.zeros(len(counts), dtype=torch.long),
    }


class Energies:
    """Energies that should vanish."""

    units = {"energy": "eV"}

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        for number, counts in enumerate(SIZES):
            yield molecules(counts, number)

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        copies = {key: value.clone() for key, value in batch.items()}  # MACE writes into what it is given
        result = model(copies, training=model.training, compute_force=False)
        return {"energy": result["energy"]}

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return outputs["energy"].square().mean()

    def act(self, g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "positions": batch["positions"] @ g.T.to(batch["positions"])}

    def act_output(self, g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return outputs


task = Energies()
