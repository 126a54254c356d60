"""A bounded random sample of what a model computes beside what the data say, under the names that a task gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon.plan import Task
from surgeon.support.imports import one_line

MOST = 300
"""Pairs that are kept under each name."""

DIGITS = 5
"""That are recorded."""


class Pairs:
    """Pairs (computed, label) from the task's ``pairs(outputs, batch)``, if it has that.

    Which are kept depends on their number alone: for models that are evaluated on the same batches they are the same.

    Args:
        task: the user's task.
    """

    def __init__(self, task: Task) -> None:
        self._pairs: Any = getattr(task, "pairs", None)
        self._generator = torch.Generator().manual_seed(0)
        self._kept: dict[str, Tensor] = {}

    def see(self, outputs: Any, batch: Any) -> None:
        """Add those of one batch.

        Raises:
            TaskError: if the task returns something else.
        """
        if not callable(self._pairs):
            return
        try:
            found = {
                str(name): torch.stack([value.detach().double().cpu().flatten() for value in pair])
                for name, pair in self._pairs(outputs, batch).items()
            }
        except Exception as error:
            raise TaskError(
                "expected pairs(outputs, batch) of the task to return names to (computed, label), tensors of one "
                f"shape, but it fails with {one_line(error)}: correct it, or leave it out"
            ) from error
        for name, pair in found.items():
            # those with the smallest random numbers are a sample in which all have the same chance
            order = torch.rand(1, pair.shape[1], generator=self._generator, dtype=torch.float64)
            both = torch.cat([self._kept.get(name, pair.new_zeros(3, 0)), torch.cat([order, pair])], 1)
            self._kept[name] = both[:, both[0].argsort()[:MOST]]

    def found(self) -> dict[str, dict[str, list[float]]]:
        """Return name to ``computed`` and ``label``, in the same order."""
        rows = {name: [[_short(v) for v in row] for row in kept[1:].tolist()] for name, kept in self._kept.items()}
        return {name: {"computed": computed, "label": label} for name, (computed, label) in rows.items()}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
