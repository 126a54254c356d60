"""What a diagnosis does with little time."""

from __future__ import annotations

import pytest

from surgeon.diagnosis import DiagnosisSettings, budget
from surgeon.errors import UsageError


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
