"""Fully connected graphs of any number of particles for the N-body network: copied as a task file beside `segnn.py`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from segnn import SEGNN, SEGNNConfig
from torch import Tensor, nn


class ParticlesTask:
    """Random particles; batches differ in the number of graphs and in that of particles."""

    output_names = ("moved",)

    def model(self) -> nn.Module:
        return SEGNN(SEGNNConfig(scalars=4, vectors=2, layers=1))

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
