"""A task whose batches are in an order of its own choice, in processes of one group: a program for tests."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from surgeon.plan import Split
from surgeon.training.arms import arm_named
from surgeon.training.settings import FinetuneSettings
from tests.training.conftest import train

SAMPLES = 12
GENERATOR = torch.Generator()
GENERATOR.manual_seed(int(os.environ.get("RANK", "0")))  # another order in every process, and another first sample
ORDERS: dict[str, Callable[[], list[int]]] = {
    "torch": lambda: torch.randperm(SAMPLES).tolist(),
    "numpy": lambda: numpy.random.permutation(SAMPLES).tolist(),
    "python": lambda: random.sample(range(SAMPLES), SAMPLES),
    "own": lambda: torch.randperm(SAMPLES, generator=GENERATOR).tolist(),
}


class Shuffled:
    """Batches of one sample, which is its number; it writes down which ones are used for what."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.seen: dict[str, list[int]] = {"train": [], "validation": []}
        self.split: Split = "train"

    def batches(self, split: Split, seed: int) -> Iterator[Tensor]:
        for number in ORDERS[self.order]():
            yield torch.tensor([[float(number)]])

    def loss(self, outputs: Tensor, batch: Tensor) -> Tensor:
        self.seen["train"].append(int(batch))
        return (outputs - batch).square().mean()

    def metrics(self, outputs: Tensor, batch: Tensor) -> dict[str, tuple[float, float]]:
        self.seen["validation"].append(int(batch))
        return {"loss": (float((outputs - batch).square().sum()), 1.0)}


def main(arguments: list[str]) -> None:
    """Train for two epochs and write what one of the processes has seen to ``RANK.pt``."""
    task = Shuffled(*arguments)
    torch.manual_seed(0)
    train(nn.Linear(1, 1), task, FinetuneSettings(epochs=2), arm_named("plain"))
    torch.save(task.seen, Path(f"{torch.distributed.get_rank()}.pt"))
