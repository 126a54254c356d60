"""Whose hands a module's weights go through in a recorded run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.finding.weight_usage import Ties, WeightUsage
from surgeon.plan import Coverage
from surgeon.recording.record import record
from surgeon.registry import Refusal


class Model(nn.Module):
    """``how`` says which weights the second layer's place uses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), how
        if how == "tied":
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "borrowed":
            return functional.linear(x, self.second.weight) + self.second(x)
        return x if self.how == "unused" else self.second(x)


def usage(how: str) -> WeightUsage:
    model = Model(how)
    return WeightUsage(model, record(model, torch.randn(2, 3)))


@pytest.mark.parametrize("how", ["own", "tied", "borrowed", "unused"])
def test_complaints(how: str) -> None:
    words: dict[str, tuple[str, Coverage]] = {
        "borrowed": ("its weights are also used directly by the model itself, where a branch cannot act", "bypassed"),
        "unused": ("does not use its own weights in the recorded forward", "unused"),
    }
    found = usage(how)
    assert found.refusal("first") is None
    assert found.refusal("second") == (Refusal(*words[how]) if how in words else None)


def test_ties_are_seen_from_both_sides_and_not_from_above() -> None:
    tied = Ties(Model("tied"))
    assert (tied.of("first"), tied.of("second"), tied.of("")) == ({"second"}, {"first"}, set())
    assert Ties(Model("own")).of("first") == set()


def test_memory_is_shared_with_all_that_it_runs_into() -> None:
    """One parameter holds two others, which do not touch."""
    memory, model = torch.randn(4, 4), nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(4))
    parts = (memory, memory[1:2], memory[3:], torch.randn(4, 4))
    for module, part in zip(model, parts, strict=True):
        module.weight = nn.Parameter(part)
    ties = Ties(model)
    assert [ties.of(str(number)) for number in range(4)] == [{"1", "2"}, {"0"}, {"0"}, set()]
