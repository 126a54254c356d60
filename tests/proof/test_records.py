"""When a figure measured again counts as the recorded one: rounding may differ, what follows from weights may not."""

from __future__ import annotations

import math

import pytest

from surgeon.proof.records import compare_figures, same_deviation, same_error


@pytest.mark.parametrize(
    ("left", "right", "dtype", "same"),
    [
        (3e-7, 3e-7, "float32", True),
        (3e-7, 8e-7, "float32", True),  # rounding, on another machine
        (3e-7, 2e-6, "float32", False),
        (0.0, 1e-8, "float32", True),  # nothing below the dtype's resolution is told apart
        (0.0, 1e-6, "float32", False),
        (0.120, 0.1205, "float32", True),
        (0.120, 0.15, "float32", False),
        (2e-15, 5e-15, "float64", True),
        (2e-15, 2e-14, "float64", False),
        (3e-7, 8e-7, "float64", False),  # far above the rounding of float64: it follows from the weights
        (3e-7, 3.01e-7, "float64", True),
        (math.nan, math.nan, "float32", True),
        (math.nan, 0.1, "float32", False),
        (0.1, 0.11, "int", False),
    ],
)
def test_equivariance_errors(left: float, right: float, dtype: str, same: bool) -> None:
    assert same_error(left, right, dtype) is same_error(right, left, dtype) is same


@pytest.mark.parametrize(
    ("left", "right", "same"), [(0.05, 0.1, True), (0.05, 0.9, False), (0.0, 0.009, True), (0.3, 0.95, False)]
)
def test_deviations(left: float, right: float, same: bool) -> None:
    assert same_deviation(left, right) is same_deviation(right, left) is same


def test_figures_of_a_file() -> None:
    before = {"nodes": 3, "names": ["a"], "deviation": 0.1, "equivariance": {"identity": 0.2}, "gone": 1}
    after = {"nodes": 3, "names": ["b"], "deviation": 0.11, "equivariance": {"identity": 0.9}}
    found = compare_figures("file", before, after)
    assert found.name == "file: recorded figures"
    assert found.differences == (
        "file: recorded names is ['a'], found ['b']",
        "file, equivariance: recorded identity is 0.2, found 0.9",
        "file: recorded gone is 1, found nothing",
    )
    assert compare_figures("file", before, before).outcome == "holds"
