"""Pairs of computed values and labels are a sample of those that the task gives, the same for all models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from surgeon.errors import TaskError
from surgeon.opening.pairs import MOST, Pairs
from tests.tiny import TinyTask


class Numbers(TinyTask):
    """Gives outputs and batches as they are."""

    def pairs(self, outputs: Any, batch: Any) -> Any:
        return {"number": (outputs, batch)}


def sample(shift: float, count: int) -> dict[str, list[float]]:
    pairs = Pairs(Numbers())
    for part in torch.arange(float(count)).split(7):
        pairs.see(part + shift, part)
    return pairs.found()["number"]


def test_all_are_kept_while_there_are_few() -> None:
    found = sample(0.5, 20)
    assert sorted(found["label"]) == list(range(20))
    assert found["computed"] == [value + 0.5 for value in found["label"]]


def test_of_many_the_same_ones_are_kept_for_every_model_from_everywhere() -> None:
    first, second = sample(0.0, 20 * MOST), sample(1.0, 20 * MOST)
    assert len(set(first["label"])) == MOST
    assert first["label"] == second["label"]
    assert second["computed"] == [value + 1 for value in second["label"]]
    quarters = [sum(q <= value / (5 * MOST) < q + 1 for value in first["label"]) for q in range(4)]
    assert min(quarters) > MOST / 8


def test_a_task_may_have_none_and_what_is_not_a_pair_is_refused() -> None:
    pairs = Pairs(TinyTask())
    pairs.see(torch.ones(2), torch.ones(2))
    assert pairs.found() == {}
    with pytest.raises(TaskError, match="tensors of one shape"):
        Pairs(Numbers()).see(torch.ones(2), torch.ones(3))
