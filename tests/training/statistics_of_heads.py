"""A network whose batches use one normalised head or the other, in two processes: a program for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.training.arms import arm_named
from surgeon.training.settings import FinetuneSettings
from tests.training.conftest import train

Batch = tuple[Tensor, str]


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(1, 1)
        self.left, self.right, self.both = nn.BatchNorm1d(1), nn.BatchNorm1d(1), nn.BatchNorm1d(1)

    def forward(self, batch: Batch) -> Tensor:
        values, head = batch
        result: Tensor = getattr(self, head)(self.both(self.trunk(values)))
        return result


class HeadsTask:
    def batches(self, split: str, seed: int) -> Iterator[Batch]:
        for number in range(4):
            yield torch.randn(5, 1) + number, ("left", "right")[number % 2]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch[0]).square().mean()


def main(arguments: list[str]) -> None:
    """Write the statistics after every step, and what the own head's have to be, to ``RANK.pt``."""
    torch.manual_seed(0)
    net, seen, due = Heads(), [], []

    def gather(layer: nn.Module, given: tuple[Tensor]) -> None:
        if layer.training:
            due.append((0.9 * layer.running_mean + 0.1 * given[0].mean(0)).detach())  # type: ignore[operator]

    def look(_: object) -> None:
        seen.append(torch.stack([layer.running_mean for layer in (net.left, net.right, net.both)]).flatten())  # type: ignore[arg-type]

    for head in (net.left, net.right):
        head.register_forward_pre_hook(gather)
    train(net, HeadsTask(), FinetuneSettings(epochs=1), arm_named("plain"), None, look)
    rank = torch.distributed.get_rank()
    torch.save({"seen": torch.stack(seen), "due": torch.cat(due)}, Path(f"{rank}.pt"))
