"""The learning rate of every arm, chosen from one grid by the validation split alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import MutableMapping, Sequence
from typing import Any

from surgeon.errors import TrainingError, UsageError
from surgeon.opening.evaluation import is_better
from surgeon.opening.task_calls import primary_metric
from surgeon.training.comparison import Comparison, carry_out, one_after_the_other, require_arms_and_seeds
from surgeon.training.outcomes import ArmRun, Execute, Failure, Outcome, Point
from surgeon.training.statistics import require_equal_budgets


def sweep_points(arms: Sequence[str], grid: Sequence[float], seeds: Sequence[int] = (0,)) -> list[Point]:
    """Return the runs of :func:`sweep`, after checking that they make sense; errors as there."""
    if not grid:
        raise UsageError("expected at least one learning rate to try, got none")
    require_arms_and_seeds(arms, seeds)
    return [Point(name, seed, rate, test=False) for name in arms for rate in dict.fromkeys(grid) for seed in seeds]


def sweep(
    comparison: Comparison,
    arms: Sequence[str],
    grid: Sequence[float],
    seeds: Sequence[int] = (0,),
    execute: Execute | None = None,
    kept: MutableMapping[Point, Outcome] | None = None,
) -> dict[str, Any]:
    """Try the same learning rates for every arm; the test split is not touched.

    Args:
        comparison: what the runs share.
        arms: names, see ``surgeon.training.arms``.
        grid: learning rates to try, the same for every arm.
        seeds: seeds per point; the mean over them decides.
        execute: how to carry runs out; default one after the other in this process.
        kept: finished runs of an earlier call, which are not repeated; new ones are added.

    Returns:
        JSON-compatible record: ``best`` (arm to learning rate), ``grid``, ``seeds``, ``metric``, ``settings``, and
        ``runs`` with the validation metric of every run, NaN where the training diverged.

    Raises:
        UsageError: if an arm is unknown or named twice, or the grid is empty.
        TrainingError: if an arm diverges at every learning rate, or the arms did not get equal budgets.
    """
    metric, direction = primary_metric(comparison.task)
    points = sweep_points(arms, grid, seeds)
    outcomes = carry_out(points, execute or one_after_the_other(comparison), kept)
    require_equal_budgets([outcome for outcome in outcomes if isinstance(outcome, ArmRun)])
    found = dict(zip(points, outcomes, strict=True))
    rows, best = [], {}
    for name in arms:
        best_value = math.nan
        for rate in dict.fromkeys(grid):
            tried = [found[Point(name, seed, rate, test=False)] for seed in seeds]
            values = [math.nan if isinstance(outcome, Failure) else outcome.validation[metric] for outcome in tried]
            rows.append({"arm": name, "learning_rate": rate, "validation": values})
            if is_better(statistics.fmean(values), best_value, direction):
                best[name], best_value = rate, statistics.fmean(values)
        if name not in best:
            _raise_untrainable(name, grid, [found[point] for point in points if point.arm == name])
    return {
        "best": best,
        "grid": list(dict.fromkeys(grid)),
        "seeds": list(seeds),
        "metric": metric,
        "settings": comparison.settings.to_data(),
        "runs": rows,
    }


def _raise_untrainable(name: str, grid: Sequence[float], outcomes: Sequence[Outcome]) -> None:
    messages = [outcome.message for outcome in outcomes if isinstance(outcome, Failure)]
    rates = ", ".join(f"{rate:g}" for rate in grid)
    reason = messages[-1] if messages else "its validation metric is not a number"
    raise TrainingError(f"the arm {name!r} trains at none of the learning rates {rates}: {reason}")
