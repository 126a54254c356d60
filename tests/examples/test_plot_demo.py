"""The picture of the demo shows the largest errors."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: the extra plots")


def test_the_largest_equivariance_error_is_drawn_and_its_element_named() -> None:
    from matplotlib import pyplot as plt

    from examples.plot_demo import MODELS, draw_equivariance

    error: dict[str, Any] = {"mean": 3e-7, "median": 2e-7, "maximum": 5e-6, "count": 12, "worst": "random 2"}
    figure, axes = plt.subplots()
    draw_equivariance(axes, {model: {"float32": {"identity": error}} for model in MODELS})
    assert [bar.get_height() for bar in axes.patches] == [5e-6] * 3  # type: ignore[attr-defined]
    assert [text.get_text() for text in axes.texts] == ["random 2"] * 3
    plt.close(figure)


def test_every_run_is_drawn_over_its_steps() -> None:
    from matplotlib import pyplot as plt

    from examples.plot_demo import draw_curves

    runs = [{"arm": arm, "seed": seed, "curve": [[0, 9.0], [5, 4.0 + seed]]} for arm in ("a", "b") for seed in (0, 1)]
    figure, axes = plt.subplots()
    draw_curves(axes, {"rows": [{"arm": "a"}, {"arm": "b"}], "runs": runs})
    drawn: list[Any] = [line.get_xydata().tolist() for line in axes.lines]  # type: ignore[union-attr]
    assert drawn == [run["curve"] for run in runs]
    plt.close(figure)
