"""What a diagnosis does with little time."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from surgeon.errors import UsageError
from surgeon.training.diagnosis import budget, result
from surgeon.training.diagnosis.curvature import BranchLoss
from surgeon.training.diagnosis.result import DiagnosisSettings
from tests.training.test_diagnosis import planted

pytestmark = pytest.mark.e3nn


@pytest.mark.parametrize("product", [0.01, 0.1, 0.5, 2.0])
def test_what_is_affordable_is_expected_to_fit(product: float) -> None:
    settings = DiagnosisSettings()
    smaller = budget.affordable(settings, 60.0, product / 4, product)
    assert (smaller == settings) == (budget.expected(settings, product / 4, product) <= budget.MARGIN * 60)
    least = budget.affordable(settings, 1e-9, 1.0, 1.0)
    assert smaller == least or budget.expected(smaller, product / 4, product) <= budget.MARGIN * 60
    assert least.held_out_batches == budget.FEWEST_HELD_OUT
    assert least.train_batches == 1


def test_no_time_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        DiagnosisSettings(seconds=0.0)


def test_a_time_that_suffices_changes_nothing() -> None:
    torch.manual_seed(0)
    found = planted(-0.5, -0.5, seconds=3600.0)
    torch.manual_seed(0)
    unlimited = planted(-0.5, -0.5)
    assert found.notes == unlimited.notes == ()
    assert found.settings == dataclasses.replace(unlimited.settings, seconds=3600.0)
    assert found.curvature == unlimited.curvature


def test_a_short_time_takes_fewer_batches_and_says_so() -> None:
    found = planted(-0.5, -0.5, seconds=1e-9, train_batches=6, held_out_batches=4)
    assert found.settings.train_batches == 1
    assert found.settings.held_out_batches == 4
    assert found.settings.products < DiagnosisSettings().products
    assert any("1 training batches and 4 held-out batches" in note for note in found.notes)
    assert found.verdict == "real"
    assert len(found.curvature.held_out.values) == 4


def test_a_short_time_leaves_batches_out_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work that the settings promise is the work that is done: gradients, too, are of the fewer batches."""
    seen = []
    original = BranchLoss.gradient

    def counted(self: BranchLoss, batch: Any) -> Any:
        seen.append(batch)
        return original(self, batch)

    monkeypatch.setattr(BranchLoss, "gradient", counted)
    found = planted(-0.5, -0.5, seconds=1e-9, train_batches=6, held_out_batches=6)
    checks = 1 + 3  # the first estimate of the time, and differences beside the double backward
    assert len(seen) == found.settings.train_batches + found.settings.held_out_batches + checks
    assert [step.movement for step in found.curvature.steps] == [result.MOVEMENT]
