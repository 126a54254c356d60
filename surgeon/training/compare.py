"""Arms side by side: equal budgets, equal seeds, equal choice of the learning rate."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from surgeon.errors import TrainingError, UsageError
from surgeon.evaluation import evaluate, is_better
from surgeon.surgery import LowRankUpdates, relax, strip
from surgeon.tasks import primary_metric, task_batches
from surgeon.training.arms import Arm, arm_named
from surgeon.training.engine import StepEvent, finetune
from surgeon.training.settings import FinetuneSettings
from surgeon.types import Plan, SiteRecord, Task
from surgeon.workspace import load_branches


@dataclass(frozen=True)
class ArmRun:
    """One finished run of a comparison, measured on the stripped model.

    Attributes:
        arm: name of the arm.
        seed: seed of the run; equal seeds see equal batches in equal order.
        learning_rate: of the base weights.
        validation: clean metrics of the best epoch.
        test: metrics of the stripped model on the test split; empty in a sweep.
        best_epoch: epoch of the best clean validation metric; 0 is the model as it came.
        steps: optimiser steps.
        seconds: training time, evaluation included.
        sites: what was dropped or folded.
    """

    arm: str
    seed: int
    learning_rate: float
    validation: Mapping[str, float]
    test: Mapping[str, float]
    best_epoch: int
    steps: int
    seconds: float
    sites: tuple[SiteRecord, ...]

    def to_data(self) -> dict[str, Any]:
        """Return the run as JSON-compatible data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Comparison:
    """What all runs of a comparison share.

    Attributes:
        make_model: returns a fresh copy of the pretrained network.
        plan: where branches go.
        task: data, loss, metrics.
        settings: everything but seed and learning rate.
        test: False leaves the test split alone, for sweeps.
        start: initial weights of the branches by state-dict key; None starts at W = 0.
    """

    make_model: Callable[[], nn.Module]
    plan: Plan
    task: Task
    settings: FinetuneSettings
    test: bool = True
    start: Mapping[str, Tensor] | None = None

    def run(
        self,
        arm: Arm,
        seed: int,
        rate: float,
        on_step: Callable[[StepEvent], None] | None = None,
        on_model: Callable[[ArmRun, nn.Module], None] | None = None,
    ) -> ArmRun:
        """Train one arm with one seed, strip it, and measure what is left."""
        settings = dataclasses.replace(self.settings, seed=seed, learning_rate=rate)
        model = self.make_model()
        relaxation, updates = None, None
        if arm.low_rank:
            updates = LowRankUpdates(model, self.plan, settings.low_rank, seed)
        if arm.mode is not None:
            relaxation = relax(model, self.plan, mode=arm.mode, schedule=settings.schedule)
            if self.start is not None:
                load_branches(relaxation, self.start)
        result = finetune(model, self.task, settings, arm, relaxation or updates, on_step)
        sites = strip(relaxation) if relaxation is not None else ()
        if updates is not None:
            updates.merge()
        test = evaluate(model, self.task, "test") if self.test else {}
        run = ArmRun(
            arm.name, seed, rate, result.validation, test, result.best_epoch, result.steps, result.seconds, sites
        )
        if on_model:
            on_model(run, model.cpu())
        return run


def compare(
    comparison: Comparison,
    arms: Sequence[str],
    seeds: Sequence[int],
    rates: Mapping[str, float] | None = None,
    on_start: Callable[[str, int, float], None] | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
    on_model: Callable[[ArmRun, nn.Module], None] | None = None,
) -> list[ArmRun]:
    """Run every arm with every seed.

    Args:
        comparison: what the runs share.
        arms: names, see ``surgeon.training.arms``.
        seeds: at least one.
        rates: learning rate per arm, as :func:`sweep` found them; default that of the settings for all.
        on_start: called with arm, seed and learning rate before each run.
        on_step: called after every optimiser step.
        on_model: called with each finished run and its stripped model.

    Raises:
        UsageError: if an arm is unknown, named twice, or without learning rate; or there are no seeds.
    """
    chosen = _distinct_arms(arms, seeds)
    missing = [name for name in arms if rates is not None and name not in rates]
    if missing and rates is not None:
        raise UsageError(f"expected a learning rate for every arm, got none for {', '.join(missing)}: sweep them too")
    if comparison.test:
        task_batches(comparison.task, "test", 0)  # found missing now, not after the first training
    runs = []
    for seed in seeds:
        for arm in chosen:
            rate = comparison.settings.learning_rate if rates is None else rates[arm.name]
            if on_start:
                on_start(arm.name, seed, rate)
            runs.append(comparison.run(arm, seed, rate, on_step, on_model))
    return runs


def _distinct_arms(arms: Sequence[str], seeds: Sequence[int]) -> list[Arm]:
    chosen = [arm_named(name) for name in arms]
    if not seeds or not chosen or len(set(arms)) < len(arms):
        raise UsageError(
            f"expected distinct arms and at least one seed, got arms {list(arms)} and seeds {list(seeds)}: "
            "name each arm once"
        )
    return chosen


def sweep(
    comparison: Comparison,
    arms: Sequence[str],
    grid: Sequence[float],
    seeds: Sequence[int] = (0,),
    on_start: Callable[[str, int, float], None] | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
) -> dict[str, Any]:
    """Try the same learning rates for every arm, by the validation split alone.

    Args:
        comparison: what the runs share; its test split is not touched.
        arms: names, see ``surgeon.training.arms``.
        grid: learning rates to try, the same for every arm.
        seeds: seeds per point; the mean over them decides.
        on_start: called with arm, seed and learning rate before each run.
        on_step: called after every optimiser step.

    Returns:
        JSON-compatible record: ``best`` (arm to learning rate), ``grid``, ``seeds``, ``metric``, ``settings``, and
        ``runs`` with the validation metric of every run, NaN where the training diverged.

    Raises:
        UsageError: if an arm is unknown or named twice, or the grid is empty.
        TrainingError: if an arm diverges at every learning rate.
    """
    if not grid:
        raise UsageError("expected at least one learning rate to try, got none")
    untested = dataclasses.replace(comparison, test=False)
    metric, direction = primary_metric(comparison.task)
    _distinct_arms(arms, seeds)
    best: dict[str, float] = {}
    rows = []
    for name in arms:
        best_value, failure = math.nan, None
        for rate in grid:
            try:
                runs = compare(untested, [name], seeds, {name: rate}, on_start, on_step)
                values = [run.validation[metric] for run in runs]
            except TrainingError as error:  # a rate at which the training diverges is an answer, too
                values, failure = [math.nan] * len(seeds), error
            rows.append({"arm": name, "learning_rate": rate, "validation": values})
            if is_better(statistics.fmean(values), best_value, direction):
                best[name], best_value = rate, statistics.fmean(values)
        if name not in best:
            rates = ", ".join(f"{rate:g}" for rate in grid)
            raise TrainingError(f"the arm {name!r} trains at none of the learning rates {rates}: {failure}")
    return {
        "best": best,
        "grid": list(grid),
        "seeds": list(seeds),
        "metric": metric,
        "settings": comparison.settings.to_data(),
        "runs": rows,
    }


def summarise_runs(runs: Sequence[ArmRun], metric: str, reference: str = "plain") -> list[dict[str, Any]]:
    """Return per arm the mean and spread of a test metric and the paired difference to the reference arm.

    Returns:
        One row per arm, in order: ``arm``, ``mean``, ``spread`` (standard deviation over seeds, NaN for one seed),
        ``difference`` (mean over seeds of arm minus reference, paired by seed) and ``half_width`` of its 95 %
        confidence interval (Student's t; NaN for one seed).
    """
    values = {(run.arm, run.seed): run.test[metric] for run in runs}
    rows = []
    for arm in dict.fromkeys(run.arm for run in runs):
        seeds = [run.seed for run in runs if run.arm == arm]
        own = [values[arm, seed] for seed in seeds]
        paired = [values[arm, seed] - values[reference, seed] for seed in seeds if (reference, seed) in values]
        rows.append(
            {
                "arm": arm,
                "mean": statistics.fmean(own),
                "spread": statistics.stdev(own) if len(own) > 1 else math.nan,
                "difference": statistics.fmean(paired) if paired else math.nan,
                "half_width": _half_width(paired),
            }
        )
    return rows


def _half_width(paired: Sequence[float]) -> float:
    if len(paired) < 2:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.975, len(paired) - 1)) * statistics.stdev(paired) / math.sqrt(len(paired))
