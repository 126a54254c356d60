from __future__ import annotations

from collections.abc import Callable

import pytest

from surgeon.errors import UsageError
from surgeon.training.arms import ARMS, arm_named


def test_a_look_up_lists_the_arms() -> None:
    assert arm_named("fold") is ARMS["fold"]
    with pytest.raises(UsageError, match="plain, drop, .*, lowrank, lrbump, restarts, ace, got 'dorp'"):
        arm_named("dorp")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("drop", [(0.0, 0.0), (1.0, 1.0), (0.0, 0.0)]), ("fold", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])],
)
def test_the_coefficients_over_a_training(
    make: Callable[..., tuple[object, object]], name: str, expected: list[tuple[float, float]]
) -> None:
    _, relaxation = make(name)
    seen = []
    for progress in (0.0, 0.475, 1.0):  # the peak lies in the middle of what the tail leaves
        relaxation.set_progress(progress)  # type: ignore[attr-defined]
        seen.append(relaxation.theta)  # type: ignore[attr-defined]
    assert seen == [pytest.approx(pair) for pair in expected]
    assert seen[-1][0] == 0.0
