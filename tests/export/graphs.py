"""A small network on batches of graphs, whose numbers of nodes, edges and graphs vary, and its task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Messages(nn.Module):
    """Messages along edges from distances: a vector per node and an energy per graph."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Linear(5, 4)
        self.node = nn.Linear(6, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features, positions, (sender, receiver) = batch["features"], batch["positions"], batch["edge_index"]
        offsets = positions[sender] - positions[receiver]
        distances = offsets.square().sum(1, keepdim=True)
        messages = torch.tanh(self.edge(torch.cat([features[sender], features[receiver], distances], 1)))
        vectors = torch.zeros_like(positions).index_add(0, receiver, messages[:, :1] * offsets)
        sums = features.new_zeros(len(features), 4).index_add(0, receiver, messages)
        energies = self.node(torch.cat([features, sums], 1)).squeeze(1)
        graphs = int(batch["ptr"].numel() - 1)  # as libraries of graphs write it
        energy = energies.new_zeros(graphs).index_add(0, batch["batch"], energies)
        return {"vectors": vectors, "energy": energy}


def graphs(counts: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """A batch of fully connected graphs with these numbers of nodes."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *counts]).cumsum(0)
    spans = [range(first, first + count) for first, count in zip(starts.tolist(), counts, strict=False)]
    pairs = [(i, j) for span in spans for i in span for j in span if i != j]
    return {
        "features": torch.randn(sum(counts), 2, generator=generator),
        "positions": torch.randn(sum(counts), 3, generator=generator),
        "edge_index": torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.contiguous(),
        "batch": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        "ptr": starts,
    }


class GraphTask:
    """Batches of graphs of several sizes, under rotations and reflections."""

    def __init__(self, sizes: Sequence[Sequence[int]] = ((4, 3), (2, 5, 3), (6, 2, 3, 4), (1, 7, 2, 3, 2))) -> None:
        self.sizes = sizes

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        for number, counts in enumerate(self.sizes):
            yield graphs(counts, number)

    def loss(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return outputs["energy"].square().mean()

    def act(self, g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "positions": batch["positions"] @ g.to(batch["positions"]).T}

    def act_output(self, g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**outputs, "vectors": outputs["vectors"] @ g.to(outputs["vectors"]).T}
