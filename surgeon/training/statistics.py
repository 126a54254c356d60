"""What the runs of a comparison show: means, spreads, paired differences, and where a sweep was too narrow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.errors import TrainingError
from surgeon.training.arms import reference_of
from surgeon.training.outcomes import ArmRun


@dataclass(frozen=True)
class Estimate:
    """A mean, and how well a sample tells it.

    Attributes:
        mean: of the sample.
        half_width: of its 95 % interval (Student's t); NaN for a sample of one.
    """

    mean: float
    half_width: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean of what the values are a sample of."""
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, math.nan, tuple(values))
        from scipy.stats import t

        quantile = float(t.ppf(0.975, count - 1))
        return cls(mean, quantile * statistics.stdev(values) / math.sqrt(count), tuple(values))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width


def summarise_runs(runs: Sequence[ArmRun], metric: str) -> list[dict[str, Any]]:
    """Return per arm the mean and spread of a test metric and the paired difference to the first plain arm.

    Returns:
        One row per arm, in order: ``arm``, ``runs`` (how many), ``reference`` (the arm that it is compared
        with, None without a plain one), ``mean``, ``spread`` (standard deviation over seeds,
        NaN for one seed), ``difference`` (mean over seeds of arm minus reference, paired by seed) and ``half_width``
        of its 95 % confidence interval (Student's t; NaN for one seed).
    """
    values = {(run.arm, run.seed): run.test[metric] for run in runs}
    rows, reference = [], reference_of([run.arm for run in runs])
    for arm in dict.fromkeys(run.arm for run in runs):
        seeds = [run.seed for run in runs if run.arm == arm]
        own = [values[arm, seed] for seed in seeds]
        paired = [
            values[arm, seed] - values[reference, seed] for seed in seeds if reference and (reference, seed) in values
        ]
        rows.append(
            {
                "arm": arm,
                "runs": len(own),
                "reference": reference,
                "mean": statistics.fmean(own),
                "spread": statistics.stdev(own) if len(own) > 1 else math.nan,
                "difference": statistics.fmean(paired) if paired else math.nan,
                "half_width": Estimate.of(paired).half_width if paired else math.nan,
            }
        )
    return rows


def edges_of_sweep(sweep: Mapping[str, Any]) -> list[str]:
    """Say for which arms the best learning rate still is the lowest or highest one tried.

    Args:
        sweep: the record of a sweep; an arm with one rate has no edge.

    Returns:
        One sentence per arm.
    """
    said = []
    for arm, rate in sweep["best"].items():
        rates = {run["learning_rate"] for run in sweep["runs"] if run["arm"] == arm}
        sides = {min(rates): ("lowest", "smaller"), max(rates): ("highest", "larger")} if len(rates) > 1 else {}
        if rate in sides:
            edge, side = sides[rate]
            said.append(
                f"warning: the best learning rate of {arm}, {rate:g}, is the {edge} of the {len(rates)} tried, so a "
                f"better one may lie beyond: add {side} rates to --lr-grid, finished runs are not repeated"
            )
    return said


def require_equal_budgets(runs: Sequence[ArmRun]) -> None:
    """Refuse runs of equal seed that took different numbers of optimiser steps.

    Raises:
        TrainingError: naming two of them.
    """
    first: dict[int, ArmRun] = {}
    for run in runs:
        other = first.setdefault(run.seed, run)
        if run.steps != other.steps:
            raise TrainingError(
                f"expected equal budgets, but with seed {run.seed} the arm {other.arm!r} took {other.steps} optimiser "
                f"steps and {run.arm!r} {run.steps}: let the task return equally many batches for equal seeds; if it "
                "does, this is an error of surgeon"
            )
