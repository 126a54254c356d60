"""The learning rate of every arm, chosen from one grid by the validation split alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from surgeon.errors import TrainingError, UsageError
from surgeon.opening.evaluation import is_better
from surgeon.opening.task_calls import primary_metric
from surgeon.training.comparison import Comparison, carry_out, one_after_the_other, require_arms_and_seeds
from surgeon.training.outcomes import ArmRun, Execute, Failure, Outcome, Point
from surgeon.training.statistics import require_equal_budgets

FURTHER = 4
"""Rates beyond the grid, at most, that an arm gets in a sweep."""


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
    """Try the same learning rates for every arm, and more beyond an edge at which one is best; the test split stays.

    A best rate at an edge of what was tried says that a better one may lie beyond. So that no arm loses by the choice
    of the grid, the next rate beyond is tried, in the ratio of the last two, until the best one has neighbours on both
    sides or ``FURTHER`` rates were added to an arm. A grid of one rate is no sweep and stays as it is.

    Args:
        arms: as :class:`surgeon.training.arms.Contender` reads them.
        grid: learning rates to try, the same for every arm.
        seeds: seeds per point; the mean over them decides.
        execute: how to carry runs out; default one after the other in this process.
        kept: finished runs of an earlier call, which are not repeated; new ones are added.

    Returns:
        JSON-compatible record: ``best`` (arm to learning rate), ``grid``, ``further`` (arm to the rates that were tried
        beyond it, in order), ``seeds``, ``metric``, ``settings``, and ``runs`` with the validation metric of every run,
        NaN where the training diverged.

    Raises:
        UsageError: if an arm is unknown or named twice, or the grid is empty.
        TrainingError: if an arm diverges at every learning rate, or the arms did not get equal budgets.
    """
    metric, direction = primary_metric(comparison.task)
    execute, kept = execute or one_after_the_other(comparison), {} if kept is None else kept
    points = sweep_points(arms, grid, seeds)
    found = dict(zip(points, carry_out(points, execute, kept), strict=True))
    further: dict[str, list[float]] = {name: [] for name in arms}
    while True:
        values = {name: _by_rate(name, found, seeds, metric) for name in arms}
        best = {name: _best(name, values[name], direction, found) for name in arms}
        beyond = {name: rate_beyond(best[name], values[name]) for name in arms if len(further[name]) < FURTHER}
        wanted = [Point(name, seed, rate, test=False) for name, rate in beyond.items() if rate for seed in seeds]
        if not wanted:
            break
        found |= zip(wanted, carry_out(wanted, execute, kept), strict=True)
        for name in dict.fromkeys(point.arm for point in wanted):
            further[name].append(beyond[name] or math.nan)
    require_equal_budgets([outcome for outcome in found.values() if isinstance(outcome, ArmRun)])
    return {
        "best": best,
        "grid": list(dict.fromkeys(grid)),
        "further": {name: rates for name, rates in further.items() if rates},
        "seeds": list(seeds),
        "metric": metric,
        "settings": comparison.settings.to_data(),
        "runs": [
            {"arm": name, "learning_rate": rate, "validation": each}
            for name in arms
            for rate, each in values[name].items()
        ],
    }


def _by_rate(name: str, found: Mapping[Point, Outcome], seeds: Sequence[int], metric: str) -> dict[float, list[float]]:
    """Return what an arm reached at every rate, one value for every seed."""
    rates = dict.fromkeys(point.learning_rate for point in found if point.arm == name)
    outcomes = {rate: [found[Point(name, seed, rate, test=False)] for seed in seeds] for rate in rates}
    return {
        rate: [math.nan if isinstance(each, Failure) else each.validation[metric] for each in tried]
        for rate, tried in outcomes.items()
    }


def _best(name: str, values: Mapping[float, Sequence[float]], direction: str, found: Mapping[Point, Outcome]) -> float:
    best = best_rate({rate: statistics.fmean(each) for rate, each in values.items()}, direction)
    if math.isnan(best):
        _raise_untrainable(name, list(values), [found[point] for point in found if point.arm == name])
    return best


def best_rate(values: Mapping[float, float], direction: str) -> float:
    """Return the learning rate that reached the best value; NaN if none is finite."""
    best = math.nan
    for rate, value in values.items():
        if is_better(value, values.get(best, math.nan), direction):
            best = rate
    return best


def rate_beyond(best: float, tried: Iterable[float]) -> float | None:
    """Return the next rate beyond the best one if that lies at an edge; at most ten times as far."""
    rates = sorted(tried)
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    ratio = min(10.0, max(0.1, best / neighbour))
    return float(f"{best * ratio:.3g}")  # a name of a file, too


def _raise_untrainable(name: str, grid: Sequence[float], outcomes: Sequence[Outcome]) -> None:
    messages = [outcome.message for outcome in outcomes if isinstance(outcome, Failure)]
    rates = ", ".join(f"{rate:g}" for rate in grid)
    reason = messages[-1] if messages else "its validation metric is not a number"
    raise TrainingError(f"the arm {name!r} trains at none of the learning rates {rates}: {reason}")
