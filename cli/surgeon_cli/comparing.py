"""A comparison of arms from the command line: sweep, runs, table, record."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.certificate import certify, machine, versions
from surgeon.errors import CheckpointError, UsageError
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
    task = workspace.require_task().task
    comparison = Comparison(lambda: workspace.original()[0], workspace.relaxation.plan, task, settings)
    metric, _ = primary_metric(task)
    swept: Mapping[str, Any] | None = read_sweep(record) if record else None
    with training_bar(metric, json_output) as bar:
        start = None if bar is None else lambda arm, seed, rate: bar.start(f"{arm}, seed {seed}, lr {rate:g}")
        if grid:
            swept = sweep(comparison, arms, grid, range(comparing.lr_seeds), on_start=start, on_step=bar)
        judge = _Judge(workspace)
        rates = swept["best"] if swept else None
        runs = compare(comparison, arms, range(comparing.seeds), rates, start, bar, judge)
    rows = _rows(runs, metric, judge)
    data = {
        "metric": metric,
        "rows": rows,
        "runs": [run.to_data() for run in runs],
        "settings": settings.to_data(),
        "sweep": swept,
        "group": workspace.relaxation.plan.group,
        "sites": len(workspace.relaxation.plan.sites),
        "versions": versions(),
        "machine": machine(),
        "command": ["surgeon", *sys.argv[1:]],
    }
    write_json(target, data, force=force)
    if json_output:
        print_json(data)
        return
    if swept and {"grid", "runs", "seeds", "metric"} <= swept.keys():
        console().print(sweep_table(swept))
    console().print(comparison_table(rows, metric, comparing.seeds))
    others = [name for name in runs[0].test if name not in (metric, "loss")]
    if others:
        console().print(other_metrics_table({name: summarise_runs(runs, name) for name in others}))
    for sentence in sentences(rows, metric):
        say(sentence)
    say(f"wrote {target}")


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
        share = 100 * row["difference"] / plain["mean"]
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
