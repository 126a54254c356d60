"""Random numbers of a task: the same for the same seed, whatever others draw, and nothing is changed for others."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy
import torch

from surgeon.opening.random_numbers import RandomNumbers
from surgeon.opening.task_calls import count_batches, task_batches
from surgeon.plan import Split


def numbers() -> list[float]:
    return [random.random(), float(numpy.random.rand()), float(torch.rand(()))]


class Rolling:
    """Draws before the first batch and in every one."""

    def batches(self, split: Split, seed: int) -> Iterator[list[float]]:
        start = numbers()
        for _ in range(3):
            yield start + numbers()

    def loss(self, outputs: torch.Tensor, batch: list[float]) -> torch.Tensor:
        return outputs


def test_batches_depend_on_their_seed_alone_and_others_are_not_disturbed() -> None:
    task, found = Rolling(), []
    for disturbed in (False, True):
        batches = task_batches(task, "train", 5)
        drawn = []
        for batch in batches:
            if disturbed:
                numbers()
            drawn.append(batch)
        found.append(drawn)
    assert found[0] == found[1]
    assert len({number for batch in found[0] for number in batch[3:]}) == 9
    assert found[0] != list(task_batches(task, "train", 6))
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(1)
    expected = numbers()
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(1)
    assert count_batches(task, "train", 5) == len(list(task_batches(task, "validation", 5))) == 3
    assert numbers() == expected


def test_every_integer_is_a_seed() -> None:
    drawn = []
    for seed in (-1, 2**32 - 1, 0):
        with RandomNumbers(seed).drawn():
            drawn.append(numbers())
    assert drawn[0] == drawn[1] != drawn[2]
