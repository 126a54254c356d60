"""The record of a comparison: its runs, what they show, and the words for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgeon.opening.evaluation import Judging
from surgeon.support.versions import provenance
from surgeon.training.comparison import Comparison
from surgeon.training.outcomes import ArmRun, Point
from surgeon.training.statistics import edges_of_sweep, summarise_runs
from surgeon.training.store import RunStore


@dataclass
class ComparisonRecord:
    """What a comparison has found so far.

    Attributes:
        metric: of the test split, by which arms are compared.
        points: the final runs that are wanted, in order.
        sweep: where the learning rates are from; None if all arms have the same.
        complete: whether all runs are finished.
        kept_weights: arm to the seeds whose weights are kept.
        next: the command that makes the first of them clean; empty if there are none.
    """

    comparison: Comparison = field(repr=False)
    metric: str
    kept: RunStore = field(repr=False)
    points: Sequence[Point] = field(default=(), repr=False)
    sweep: Mapping[str, Any] | None = field(default=None, repr=False)
    complete: bool = False
    kept_weights: Mapping[str, Sequence[int]] = field(default_factory=dict)
    next: str = ""

    @property
    def runs(self) -> list[ArmRun]:
        """The finished final runs, in the order in which they were asked for."""
        found = (self.kept.get(point) for point in self.points)
        return [run for run in found if isinstance(run, ArmRun)]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per arm, with those of :func:`summarise_runs`."""
        rows = summarise_runs(self.runs, self.metric)
        for row in rows:
            own = [run for run in self.runs if run.arm == row["arm"]]
            errors = [run.equivariance for run in own if run.equivariance is not None]
            row["learning_rate"] = own[0].learning_rate
            row["seconds"] = sum(run.seconds for run in own) / len(own)
            row["certificate"] = f"{sum(run.certificate == 'same graph' for run in own)} of {len(own)} same graph"
            row["equivariance"] = f"{max(errors):.1e}" if errors else "not measured"
        return rows

    def sentences(self) -> list[str]:
        """Return in words what was found, and no more than that; warnings first."""
        swept = self.sweep or {}
        edges = edges_of_sweep(swept) if "runs" in swept else []
        rows = self.rows()
        said = [_budget(self.runs)] if rows else []
        plain = next((row for row in rows if row["arm"] == row["reference"]), None)
        if plain is not None:
            paired = [row for row in rows if row is not plain and not math.isnan(row["difference"])]
            said += [_against(plain, row, self.metric) for row in paired]
        return [*edges, *said]

    def to_data(self) -> dict[str, Any]:
        """Return everything as JSON-compatible data."""
        return {
            "complete": self.complete,
            "metric": self.metric,
            "judging": dataclasses.asdict(Judging.of(self.comparison.task)),
            "rows": self.rows(),
            "sentences": self.sentences(),
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "settings": self.comparison.settings.to_data(),
            "sweep": self.sweep,
            "kept weights": self.kept_weights,
            "group": self.comparison.plan.group,
            "sites": len(self.comparison.plan.sites),
            **provenance(),
        }


def _budget(runs: Sequence[ArmRun]) -> str:
    arms, seeds = len({run.arm for run in runs}), len({run.seed for run in runs})
    steps = sorted({run.steps for run in runs})
    each = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} (by seed)"
    return f"{len(runs)} runs: {arms} arms, {seeds} seeds, {each} optimiser steps each"


def _against(plain: Mapping[str, Any], row: Mapping[str, Any], metric: str) -> str:
    percent = 100 / abs(plain["mean"])
    share, other = f"{percent * row['difference']:+.1f}", plain["arm"]
    if math.isnan(row["half_width"]):
        verdict = "one seed says nothing about chance"
    elif row["half_width"] == 0:
        verdict = "all seeds gave the same result, so nothing is known about chance"
    elif abs(row["difference"]) <= row["half_width"]:
        verdict = "not distinguishable with these seeds"
    else:
        verdict = "distinguishable (95 % interval excludes 0)"
    if row["half_width"] > 0:
        share += f" ± {percent * row['half_width']:.1f}"
    return f"{row['arm']}: {metric} {share} % against {other}: {verdict}"
