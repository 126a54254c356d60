"""theta(t): the printed schedule, the exact-zero tail, and the coefficient that stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.algebra.schedule import SHAPES, Schedule
from surgeon.errors import UsageError

PROGRESS = st.floats(0.0, 1.0)
TAILS = st.floats(0.0, 0.9)


@pytest.mark.parametrize("steps", [4, 10, 1000])
def test_triangle_is_the_published_one(steps: int) -> None:
    schedule = Schedule("triangle", tail=0.0)
    published = [2 * i / steps if i < steps / 2 else 2 - 2 * i / steps for i in range(steps)]
    assert [schedule.perpendicular(i / steps) for i in range(steps)] == pytest.approx(published, abs=1e-12)


@given(st.sampled_from(sorted(set(SHAPES) - {"constant"})), st.floats(0.01, 0.9), PROGRESS)
def test_the_tail_is_exactly_zero(name: str, tail: float, progress: float) -> None:
    schedule = Schedule(name, tail=tail)
    theta = schedule.perpendicular(progress)
    assert 0.0 <= theta <= 1.0
    if progress >= 1 - tail + 1e-9:
        assert theta == 0.0


def test_without_a_tail_the_triangle_is_still_open_before_the_end() -> None:
    assert Schedule("triangle", tail=0.0).perpendicular(0.99) > 0
    assert Schedule("triangle", tail=0.05).perpendicular(0.99) == 0.0


@given(st.sampled_from(sorted(SHAPES)), TAILS, st.lists(PROGRESS, min_size=2, max_size=5))
def test_parallel_never_falls_and_ends_at_the_peak(name: str, tail: float, times: list[float]) -> None:
    schedule = Schedule(name, tail=tail, peak=0.5)
    values = [schedule.parallel(t) for t in sorted(times)]
    assert values == sorted(values)
    assert schedule.parallel(1.0) == pytest.approx(0.5)


@given(TAILS, PROGRESS)
def test_the_two_coefficients_rise_together(tail: float, progress: float) -> None:
    schedule = Schedule("triangle", tail=tail)
    if progress < 0.5 * (1 - tail) - 1e-9:
        assert schedule.parallel(progress) == schedule.perpendicular(progress)
    assert schedule.parallel(progress) >= schedule.perpendicular(progress) - 1e-12


@pytest.mark.parametrize("name", ["triangle", "cosine"])
def test_the_function_is_kept_at_the_start(name: str) -> None:
    assert Schedule(name).perpendicular(0.0) == Schedule(name).parallel(0.0) == 0.0
    assert Schedule(name, tail=0.0).perpendicular(0.5) == pytest.approx(1.0)


def test_one_sided_starts_at_the_peak_and_constant_stays_there() -> None:
    assert Schedule("one-sided").perpendicular(0.0) == 1.0
    assert {Schedule("constant").perpendicular(t / 10) for t in range(11)} == {1.0}


@pytest.mark.parametrize("progress", [-1e-9, 1.5, 7, float("nan")])
def test_progress_outside_the_training_is_refused(progress: float) -> None:
    for coefficient in (Schedule().perpendicular, Schedule("constant").perpendicular, Schedule().parallel):
        with pytest.raises(UsageError, match="pass step / steps"):
            coefficient(progress)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "square"}, "triangle, one-sided, cosine, constant"),
        ({"tail": 1.0}, r"\[0, 1\)"),
        ({"tail": -0.1}, r"\[0, 1\)"),
        ({"tail": float("nan")}, r"\[0, 1\)"),
        ({"peak": 0.0}, "positive finite"),
        ({"peak": float("inf")}, "positive finite"),
    ],
)
def test_unusable_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Schedule(**settings)


def test_settings_survive_json() -> None:
    schedule = Schedule("cosine", tail=0.1, peak=0.3)
    assert Schedule(**schedule.to_data()) == schedule
