"""The task's batches as optimiser steps: shared out over processes, grouped for accumulation, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from surgeon.errors import TaskError
from surgeon.opening.random_numbers import shared
from surgeon.opening.task_calls import count_batches, task_batches
from surgeon.plan import Task


@dataclass(frozen=True)
class Sharing:
    """How batches become steps.

    One step takes ``accumulate`` batches on each of ``processes`` processes; batch number k of a step goes to process
    ``k % processes``, so that equal global batches give equal steps whatever the number of processes.

    Attributes:
        accumulate: batches per process and step.
    """

    accumulate: int = 1
    processes: int = 1
    process: int = 0

    @property
    def per_step(self) -> int:
        """Batches of one full step, all processes together."""
        return self.accumulate * self.processes

    def number(self, step: int, own: int) -> int:
        """Return the number, among the batches of all steps and processes, of a batch of this process in a step."""
        return step * self.per_step + own * self.processes + self.process

    def steps(self, batches: int) -> int:
        """Return the number of steps that an epoch of so many batches has; the last may be smaller.

        Raises:
            TaskError: if there are fewer batches than processes.
        """
        if batches < self.processes:
            raise TaskError(
                f"expected at least one training batch for each of {self.processes} processes, got {batches}: make the "
                "batches smaller or launch fewer processes"
            )
        whole = batches - batches % self.processes
        return -(-whole // self.per_step)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of the order of an epoch's batches."""
    return seed * 100_003 + epoch


def count_steps(task: Task, sharing: Sharing, seed: int) -> int:
    """Return the steps of an epoch, by counting its batches."""
    return sharing.steps(count_batches(task, "train", seed))


def training_steps(task: Task, sharing: Sharing, seed: int, done: int = 0) -> Iterator[list[Any]]:
    """Yield, for every step of an epoch, the batches of this process.

    Batches that cannot be shared out evenly at the end of an epoch are left out; which ones these are changes with the
    order. Nothing is read ahead beyond the present step.

    Args:
        done: steps to leave out at the beginning; their batches are drawn and forgotten.

    Raises:
        TaskError: if processes draw different batches.
    """
    batches = shared(task_batches(task, "train", seed), f"the task's batches('train', {seed})")
    for _ in islice(batches, done * sharing.per_step):
        pass
    while group := list(islice(batches, sharing.per_step)):
        whole = len(group) - len(group) % sharing.processes
        if whole:
            yield group[sharing.process : whole : sharing.processes]
