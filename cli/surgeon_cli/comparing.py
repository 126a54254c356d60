"""A comparison of arms from the command line: sweep, runs, table, record."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.certificate import certify, machine, versions
from surgeon.errors import CheckpointError, TrainingError, UsageError
from surgeon.files import check_writable, write_json
from surgeon.groups import parse_group
from surgeon.tasks import can_act, primary_metric, task_forward
from surgeon.training import ArmRun, Comparison, FinetuneSettings, arm_named, compare, summarise_runs, sweep
from surgeon.types import ErrorSummary
from surgeon.verdict import MeasureSettings, sample_batches, task_equivariance
from surgeon.workspace import OpenOptions, Workspace, open_path
from surgeon_cli.progress import training_bar
from surgeon_cli.screen import comparison_table, console, other_metrics_table, print_json, say, sweep_table
from surgeon_cli.training_options import Comparing


def run_comparison(
    folder: Path,
    out: Path | None,
    comparing: Comparing,
    settings: FinetuneSettings,
    options: OpenOptions,
    force: bool,
    json_output: bool,
) -> None:
    """Train all arms from the original checkpoint, print one table, and write one record."""
    target = out or Path(f"{folder.resolve().name.removesuffix('-relaxed')}-compare.json")
    check_writable(target, force)
    arms, grid, record = comparing.arms(), comparing.grid(), comparing.lr_record
    for name in arms:
        arm_named(name)
    if grid and record:
        raise UsageError("expected either --lr-grid or --lr-record, got both: leave one out")
    workspace = open_path(folder, options)
    if workspace.relaxation is None:
        raise CheckpointError(
            f"expected a relaxed folder, got the plain checkpoint {str(folder)!r}: run `surgeon relax {folder}` first"
        )
    settings = dataclasses.replace(settings, schedule=workspace.relaxation.schedule)
    task = workspace.require_task().task
    metric, _ = primary_metric(task)
    swept: Mapping[str, Any] | None = read_sweep(record) if record else None
    comparison = Comparison(
        lambda: workspace.original()[0], workspace.relaxation.plan, task, settings, start=_initial_branches(workspace)
    )
    results = _Results(target, workspace, metric, settings, force)
    with training_bar(metric, json_output) as bar, results.kept_on_failure():
        start = None if bar is None else lambda arm, seed, rate: bar.start(f"{arm}, seed {seed}, lr {rate:g}")
        if grid:
            swept = sweep(comparison, arms, grid, range(comparing.lr_seeds), on_start=start, on_step=bar)
            results.sweep = swept
            results.write(complete=False)
        results.sweep = swept
        rates = swept["best"] if swept else None
        seeds = range(settings.seed, settings.seed + comparing.seeds)
        compare(comparison, arms, seeds, rates, start, bar, results)
    results.write(complete=True)
    if json_output:
        print_json(results.data(complete=True))
        return
    _show(results, comparing.seeds)
    say(f"wrote {target}")


def _initial_branches(workspace: Workspace) -> Mapping[str, Tensor] | None:
    """Return the folder's W if it has not been trained yet; a comparison starts where a single run would."""
    assert workspace.files is not None
    return workspace.files.branches if workspace.files.config.step == 0 else None


def _show(results: _Results, seeds: int) -> None:
    rows, runs, swept = results.rows(), results.runs, results.sweep
    if swept and {"grid", "runs", "seeds", "metric"} <= swept.keys():
        console().print(sweep_table(swept))
    console().print(comparison_table(rows, results.metric, seeds))
    others = [name for name in runs[0].test if name not in (results.metric, "loss")]
    if others:
        console().print(other_metrics_table({name: summarise_runs(runs, name) for name in others}))
    for sentence in sentences(rows, results.metric):
        say(sentence)


class _Results:
    """The record of a comparison, written anew after every finished run, so that none is lost."""

    def __init__(
        self, target: Path, workspace: Workspace, metric: str, settings: FinetuneSettings, force: bool
    ) -> None:
        self.metric = metric
        self.runs: list[ArmRun] = []
        self.sweep: Mapping[str, Any] | None = None
        self._target, self._workspace, self._settings, self._force = target, workspace, settings, force
        self._judge = _Judge(workspace)

    def __call__(self, run: ArmRun, model: nn.Module) -> None:
        """Take up a finished run with its stripped model."""
        self._judge(run, model)
        self.runs.append(run)
        self.write(complete=False)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per arm."""
        return _rows(self.runs, self.metric, self._judge)

    def data(self, complete: bool) -> dict[str, Any]:
        """Return the record as JSON-compatible data."""
        relaxation = self._workspace.relaxation
        assert relaxation is not None
        return {
            "complete": complete,
            "metric": self.metric,
            "rows": self.rows(),
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
        """Write the record; the one of the run before is replaced."""
        write_json(self._target, self.data(complete), force=self._force)
        self._force = True

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Say where the finished runs are when a later one fails or is interrupted."""
        try:
            yield
        except (KeyboardInterrupt, TrainingError) as error:
            what = str(error) or "interrupted"
            if not self.runs:
                kept = "nothing was written" if self.sweep is None else f"the sweep is in {self._target}"
                raise TrainingError(f"{what}; no run of the comparison was finished, {kept}") from None
            raise TrainingError(f"{what}; finished runs, {len(self.runs)} of them, are in {self._target}") from None


class _Judge:
    """Certificate and equivariance error of every finished run."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._original = workspace.original()[0]
        self.verdicts: dict[str, list[bool]] = {}
        self.errors: dict[str, list[float]] = {}

    def __call__(self, run: ArmRun, model: nn.Module) -> None:
        task = self._workspace.require_task()
        batch = sample_batches(task, 1)[0]
        certificate = certify(self._original, model, lambda m: task_forward(task.task, m, batch))
        self.verdicts.setdefault(run.arm, []).append(certificate.identical)
        if can_act(task.task) and self._workspace.relaxation is not None:
            group = parse_group(self._workspace.relaxation.plan.group)
            errors: dict[str, ErrorSummary] = task_equivariance(model, task, group, MeasureSettings(2, 1))
            self.errors.setdefault(run.arm, []).append(max(error.median for error in errors.values()))


def _rows(runs: list[ArmRun], metric: str, judge: _Judge) -> list[dict[str, Any]]:
    rows = summarise_runs(runs, metric)
    for row in rows:
        own = [run for run in runs if run.arm == row["arm"]]
        row["learning_rate"] = own[0].learning_rate
        row["seconds"] = sum(run.seconds for run in own) / len(own)
        verdicts, errors = judge.verdicts[row["arm"]], judge.errors.get(row["arm"])
        row["certificate"] = f"{sum(verdicts)} of {len(verdicts)} identical"
        row["equivariance"] = f"{max(errors):.1e}" if errors else "not measured"
    return rows


def sentences(rows: list[dict[str, Any]], metric: str) -> list[str]:
    """Say in words what a comparison shows, and no more than it shows."""
    said = []
    plain = next((row for row in rows if row["arm"] == "plain"), None)
    for row in rows:
        if plain is None or row is plain or row["difference"] != row["difference"]:
            continue
        share = 100 * row["difference"] / abs(plain["mean"])
        if row["half_width"] != row["half_width"]:
            verdict = "one seed says nothing about chance"
        elif row["half_width"] == 0:
            verdict = "all seeds gave the same result, so nothing is known about chance"
        elif abs(row["difference"]) <= row["half_width"]:
            verdict = "not distinguishable from plain fine-tuning with these seeds"
        else:
            verdict = "distinguishable from plain fine-tuning (95 % interval excludes 0)"
        said.append(f"{row['arm']}: {metric} {share:+.1f} % against plain: {verdict}")
    return said


def read_sweep(path: Path) -> Mapping[str, Any]:
    """Read the record of a sweep.

    Raises:
        CheckpointError: if it is missing or has no best learning rates.
    """
    try:
        data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        data = data.get("sweep") or data
        return {**data, "best": {str(arm): float(rate) for arm, rate in data["best"].items()}}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"expected the record of a sweep in {str(path)!r}, could not read one ({error}): give the file that "
            "--lr-grid wrote"
        ) from error
