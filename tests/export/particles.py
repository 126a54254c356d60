"""Fully connected graphs of any number of particles: copied as a task file beside `segnn.py`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from segnn import dense_edges
from torch import Tensor, nn


class Particles(nn.Module):
    """One round of messages along edges that are made in the forward, with the inputs and the output of the SEGNN."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Linear(2, channels, bias=False)
        self.weights = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, channels))
        self.readout = nn.Linear(channels, 1, bias=False)

    def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        source, target = dense_edges(positions.shape[0], positions.shape[1], positions.device)
        centred = positions - positions.mean(1, keepdim=True)
        vectors = torch.stack((centred, velocities), -1).flatten(0, 1)
        distance = (vectors[source] - vectors[target])[..., 0].norm(dim=1)
        product = charges.flatten()[source] * charges.flatten()[target]
        nodes = self.embedding(vectors)
        messages = self.weights(torch.stack((distance, product), 1))[:, None] * nodes[source]
        nodes = nodes + torch.zeros_like(nodes).index_add(0, target, messages)
        return positions + self.readout(nodes).view_as(positions)


class ParticlesTask:
    """Random particles; batches differ in the number of graphs and in that of particles."""

    output_names = ("moved",)

    def model(self) -> nn.Module:
        return Particles()

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(len(split))
        for graphs, particles in ((9, 4), (8, 5), (12, 3), (8, 6)):
            shape = (graphs, particles)
            yield {
                "positions": torch.randn(*shape, 3, generator=generator),
                "velocities": torch.randn(*shape, 3, generator=generator),
                "charges": torch.randint(2, shape, generator=generator).float() * 2 - 1,
            }

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        moved: Tensor = model(batch["positions"], batch["velocities"], batch["charges"])
        return moved

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (outputs - batch["positions"] - batch["velocities"]).square().mean()

    def act(self, g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, **{name: batch[name] @ g.T.to(batch[name]) for name in ("positions", "velocities")}}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs @ g.T.to(outputs)


task = ParticlesTask()
