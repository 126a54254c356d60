"""A comparison of arms from the command line: sweep, runs, table, record."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgeon.errors import ExistsError, TrainingError, UsageError
from surgeon.files.atomic import check_writable
from surgeon.files.content import write_json
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import primary_metric
from surgeon.opening.workspace import Workspace
from surgeon.support.versions import machine, versions
from surgeon.training.arms import arm_named
from surgeon.training.compare import Comparison, compare, final_points, one_after_the_other
from surgeon.training.outcomes import ArmRun, Execute, Failure, Outcome, Point
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import Source, comparison_of, local_processes, ray_cluster
from surgeon.training.statistics import edges_of_grid, summarise_runs
from surgeon.training.store import IDENTITY_FILE, RunStore
from surgeon.training.sweep import sweep
from surgeon_cli.comparison_words import budget, read_sweep, sentences
from surgeon_cli.progress import TrainingBar, training_bar
from surgeon_cli.screen import comparison_table, console, other_metrics_table, print_json, say, sweep_table
from surgeon_cli.training_options import Comparing


def runs_beside(record: Path) -> Path:
    """Return the folder of the finished runs of a comparison."""
    return record.with_name(f"{record.stem}.runs")


def run_comparison(
    folder: Path,
    target: Path,
    comparing: Comparing,
    settings: FinetuneSettings,
    options: OpenOptions,
    force: bool,
    json_output: bool,
) -> None:
    """Train all arms from the original checkpoint, print one table, and write one record.

    Finished runs beside the record are kept and used; ``force`` only replaces a record without any.
    """
    runs_folder = runs_beside(target)
    begun = (runs_folder / IDENTITY_FILE).is_file()
    if target.exists() and not (force or comparing.restart or begun):
        raise ExistsError(f"{str(target)!r} exists already: choose another output or overwrite it with `--force`")
    check_writable(target, True)
    arms, grid = comparing.arms(), comparing.grid()
    for name in arms:
        arm_named(name)
    if grid and comparing.lr_record:
        raise UsageError("expected either --lr-grid or --lr-record, got both: leave one out")
    if comparing.ray and comparing.jobs > 1:
        raise UsageError("expected either --jobs or --ray, got both: leave one out")
    workspace = open_path(folder, options)
    comparison = comparison_of(workspace, settings)
    settings, seeds = comparison.settings, range(settings.seed, settings.seed + comparing.seeds)
    swept: Mapping[str, Any] | None = read_sweep(comparing.lr_record) if comparing.lr_record else None
    final_points(comparison, arms, seeds, swept["best"] if swept else None)  # what is wrong is found before training
    kept = RunStore(runs_folder, _identity(workspace, settings), comparing.restart)
    results = _Results(target, workspace, settings, kept)
    with training_bar(results.metric, json_output) as bar, results.kept_on_failure():
        execute = _executor(comparing, comparison, workspace, results.metric, bar)
        _tell_kept(kept, bar)
        if grid:
            swept = sweep(comparison, arms, grid, range(comparing.lr_seeds), execute, kept)
        rates = swept["best"] if swept else None
        results.sweep, results.points = swept, final_points(comparison, arms, seeds, rates)
        compare(comparison, arms, seeds, rates, execute, kept)
    results.write(complete=True)
    if json_output:
        print_json(results.data(complete=True))
        return
    _show(results, comparing.seeds)
    say(f"wrote {target}; every run is in {runs_folder}/")


def _executor(
    comparing: Comparing, comparison: Comparison, workspace: Workspace, metric: str, bar: TrainingBar | None
) -> Execute:
    """Return how the runs are carried out, with something to see on the way unless ``bar`` is None."""
    counter = _Counter(metric)
    if comparing.ray is None and comparing.jobs == 1:
        start = None if bar is None else lambda point: bar.start(counter.title(point))
        return counter.counted(one_after_the_other(comparison, start, bar), lines=False)
    source = Source.of(workspace, comparison.settings)
    spread = ray_cluster(source, comparing.ray) if comparing.ray else local_processes(source, comparing.jobs)
    return counter.counted(spread, lines=bar is not None)


def _tell_kept(kept: RunStore, bar: TrainingBar | None) -> None:
    if bar is None:
        return
    if kept.damaged:
        tell(f"{len(kept.damaged)} stored runs are damaged and will be repeated: {', '.join(kept.damaged)}")
    if kept:
        tell(f"going on: {len(kept)} finished runs are in {kept.folder}/")


def _identity(workspace: Workspace, settings: FinetuneSettings) -> dict[str, Any]:
    """Return what all runs in one folder have to share; arm, learning rate and seed stand in the name of a run."""
    assert workspace.files is not None
    config, task = workspace.files.config, workspace.require_task()
    shared = settings.to_data()
    del shared["seed"], shared["learning_rate"]
    plan = json.dumps(config.plan.to_data(), sort_keys=True)
    branches = hashlib.sha256()
    for name, tensor in sorted(workspace.files.branches.items()):
        branches.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {
        "versions": {name: versions().get(name) for name in ("python", "equisurgeon", "torch", "e3nn")},
        "checkpoint sha256": config.base["sha256"],
        "plan": {"sites": len(config.plan.sites), "sha256": hashlib.sha256(plan.encode()).hexdigest()},
        "initial branches sha256": branches.hexdigest() if config.step == 0 else None,
        "task": {"sha256": task.sha256, "arguments": dict(task.arguments)},
        "model": workspace.found.factory,
        "settings": shared,
    }


class _Counter:
    """Says which of how many runs is going on, and how long the others will take; a sweep is counted by itself."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._total, self._done, self._started = 0, 0, 0.0

    def title(self, point: Point) -> str:
        """Return what to call the next run."""
        self._done += 1
        return f"{'run' if point.test else 'sweep'} {self._done} of {self._total}: {point}"

    def counted(self, execute: Execute, lines: bool) -> Execute:
        """Count from 1 for every list of runs; with ``lines``, print one for every run that is finished."""

        def counted(points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
            self._total, self._done, self._started = len(points), 0, time.monotonic()
            for point, outcome in execute(points):
                if lines:
                    tell(f"{self.title(point)}: {self._words(outcome)}; {self._time_left()}")
                yield point, outcome

        return counted

    def _words(self, outcome: Outcome) -> str:
        if isinstance(outcome, Failure):
            return outcome.message.split(";")[0]
        return f"validation {self._metric} {outcome.validation[self._metric]:.4g} in {outcome.seconds:.1f} s"

    def _time_left(self) -> str:
        left = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        return f"about {left / 60:.1f} min left" if left > 90 else f"about {left:.0f} s left"


def tell(text: str) -> None:
    """Print a line about the progress."""
    print(text, file=sys.stderr)


class _Results:
    """What a comparison has found, and its record."""

    def __init__(self, target: Path, workspace: Workspace, settings: FinetuneSettings, kept: RunStore) -> None:
        self.metric, _ = primary_metric(workspace.require_task().task)
        self.sweep: Mapping[str, Any] | None = None
        self.points: list[Point] = []
        self._target, self._workspace, self._settings, self._kept = target, workspace, settings, kept

    @property
    def runs(self) -> list[ArmRun]:
        """The finished final runs, in the order in which they were asked for."""
        found = (self._kept.get(point) for point in self.points)
        return [run for run in found if isinstance(run, ArmRun)]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per arm."""
        rows = summarise_runs(self.runs, self.metric)
        for row in rows:
            own = [run for run in self.runs if run.arm == row["arm"]]
            errors = [run.equivariance for run in own if run.equivariance is not None]
            row["learning_rate"] = own[0].learning_rate
            row["seconds"] = sum(run.seconds for run in own) / len(own)
            row["certificate"] = f"{sum(run.certificate == 'same graph' for run in own)} of {len(own)} same graph"
            row["equivariance"] = f"{max(errors):.1e}" if errors else "not measured"
        return rows

    def said(self) -> list[str]:
        """Return in words what was found, warnings first."""
        swept, runs = self.sweep or {}, self.runs
        edges = edges_of_grid(swept["best"], swept["grid"]) if "grid" in swept else []
        return [*edges, *([budget(runs)] if runs else []), *sentences(self.rows(), self.metric)]

    def data(self, complete: bool) -> dict[str, Any]:
        """Return the record as JSON-compatible data."""
        relaxation = self._workspace.relaxation
        assert relaxation is not None
        return {
            "complete": complete,
            "metric": self.metric,
            "rows": self.rows(),
            "sentences": self.said(),
            "runs": [run.to_data() for run in self.runs],
            "settings": self._settings.to_data(),
            "sweep": self.sweep,
            "group": relaxation.plan.group,
            "sites": len(relaxation.plan.sites),
            "versions": versions(),
            "machine": machine(),
            "command": ["surgeon", *sys.argv[1:]],
        }

    def write(self, complete: bool) -> None:
        """Write the record; an older one of the same comparison is replaced."""
        write_json(self._target, self.data(complete), force=True)

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Say where the finished runs are when a later one fails or is interrupted."""
        try:
            yield
        except (KeyboardInterrupt, TrainingError) as error:
            what = str(error) or "interrupted"
            if not self._kept:
                raise TrainingError(f"{what}; no run was finished, nothing was written") from None
            if self.runs or self.sweep:
                self.write(complete=False)
            raise TrainingError(
                f"{what}; {len(self._kept)} finished runs are kept in {self._kept.folder}/, the same command goes on"
            ) from None


def _show(results: _Results, seeds: int) -> None:
    rows, runs, swept = results.rows(), results.runs, results.sweep
    if swept and {"grid", "runs", "seeds", "metric"} <= swept.keys():
        console().print(sweep_table(swept))
    console().print(comparison_table(rows, results.metric, seeds))
    others = [name for name in runs[0].test if name not in (results.metric, "loss")]
    if others:
        console().print(other_metrics_table({name: summarise_runs(runs, name) for name in others}))
    for sentence in results.said():
        say(sentence)
