"""One training run from a relaxed folder to a run folder, resumable."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import CheckpointError, ExistsError, TrainingError, UsageError
from surgeon.files.atomic import check_writable
from surgeon.files.relaxed import read_relaxed
from surgeon.files.seals import recover, sole_writer
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.source import check_source
from surgeon.opening.task_calls import primary_metric
from surgeon.opening.workspace import Workspace
from surgeon.training.arms import arm_named
from surgeon.training.costs import training_costs
from surgeon.training.engine import Finetuner, FinetuneResult
from surgeon.training.runs import has_run, read_record, restore_run, save_run
from surgeon.training.settings import FinetuneSettings
from surgeon_cli.options import refuse_overwriting, shown
from surgeon_cli.progress import training_bar
from surgeon_cli.screen import print_json, say
from surgeon_cli.training_options import Keeping


@contextmanager
def writing_alone(target: Path) -> Iterator[None]:
    """Keep other commands from writing ``target`` meanwhile; of several processes of one run, the first one does."""
    check_writable(target, True)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with sole_writer(target) as taken_over:
        if taken_over:
            print(taken_over, file=sys.stderr)
        yield


def run_training(
    folder: Path,
    target: Path,
    arm_name: str | None,
    settings: FinetuneSettings,
    keeping: Keeping,
    options: OpenOptions,
    force: bool,
    json_output: bool,
) -> None:
    """Train, saving after every epoch, and say what came out."""
    recover(target)  # first of all: a run that a killed process was saving counts
    resuming = has_run(target) and not force
    in_place = resuming and folder.resolve() == target.resolve()  # a run that was pulled goes on where it lies
    refuse_overwriting(target, None if in_place else folder, options.task, options.original)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]) and not (resuming or force):
        raise ExistsError(
            f"{str(target)!r} exists and is not a run that can be resumed: choose another `-o`, or `--force`"
        )
    arm = None if arm_name is None else arm_named(arm_name)
    if arm is not None and arm.mode is None:
        raise UsageError(f"expected an arm with branches, got {arm.name!r}: it belongs into --compare")
    workspace = open_path(folder, options, arm.mode if arm else None)
    if workspace.relaxation is None:
        raise CheckpointError(
            f"expected a relaxed folder, got the plain checkpoint {shown(folder)!r}: run `surgeon relax "
            f"{shown(folder)}` first"
        )
    base = workspace.files.config.base if workspace.files else {}
    task = workspace.require_task()
    check_source(workspace)
    refuse_overwriting(target, None if base.get("repo") else base.get("file"), task.file)
    arm = arm or arm_named(workspace.relaxation.mode)
    settings = dataclasses.replace(settings, schedule=workspace.relaxation.schedule)
    trackers = keeping.track or []
    finetuner = Finetuner(workspace.model, task.task, settings, arm, workspace.relaxation, trackers, target.parent)
    if resuming:
        _require_same_start(target, workspace)
        restore_run(target, finetuner)
        if not json_output and finetuner.accelerator.is_main_process:
            say(f"going on after epoch {finetuner.state.epoch} of {settings.epochs} in {target}/")
    quiet = json_output or not finetuner.accelerator.is_main_process
    if not quiet:
        say(training_costs(workspace.model, task.task, workspace.relaxation).sentence())
    result = _run(finetuner, workspace, target, keeping.save_every, quiet, force)
    if not finetuner.accelerator.is_main_process:
        return
    if json_output:
        print_json({"written": str(target), "arm": arm.name, **dataclasses.asdict(result)})
        return
    if result.stopped:
        say(f"stopped early: {result.stopped}")
    _tell(finetuner, result, target)


def _require_same_start(target: Path, workspace: Workspace) -> None:
    """Refuse to go on with a run that was started from another checkpoint or other sites."""
    assert workspace.files is not None
    mine, theirs = workspace.files.config, read_relaxed(target).config
    same = {"original checkpoint": mine.base["sha256"] == theirs.base["sha256"], "plan": mine.plan == theirs.plan}
    different = [name for name, equal in same.items() if not equal]
    if different:
        raise UsageError(
            f"expected the run in {str(target)!r} to have started from {workspace.name!r}, but its "
            f"{' and '.join(different)} differ: choose another `-o`, or start anew with `--force`"
        )


def _run(
    finetuner: Finetuner, workspace: Workspace, target: Path, save_every: int | None, quiet: bool, force: bool
) -> FinetuneResult:
    with training_bar(finetuner.selection.metric, quiet) as bar:
        if bar is not None:
            bar.start(f"arm {finetuner.arm.name}")
        try:
            return finetuner.run(bar, lambda run: save_run(target, run, workspace, force), save_every)
        except KeyboardInterrupt:
            kept = "nothing was written yet"
            if has_run(target):
                kept = f"everything up to epoch {read_record(target)['state']['epoch']} is in {target}/"
            raise TrainingError(
                f"interrupted in epoch {finetuner.state.epoch}: {kept}; give the same command again to go on"
            ) from None


def _tell(finetuner: Finetuner, result: FinetuneResult, target: Path) -> None:
    metric, _ = primary_metric(finetuner.task)
    first = result.history[0]["validation"][metric]
    best = result.validation[metric]
    say(f"arm {finetuner.arm.name}: {finetuner.arm.summary}")
    say(
        f"{result.steps} steps in {result.seconds:.1f} s; clean validation {metric}: {first:.6g} before, "
        f"{best:.6g} at the best epoch {result.best_epoch}"
    )
    worse = _relaxed_is_worse(result, metric, finetuner.selection.direction)
    if worse:
        say(
            f"note: in {worse} evaluations the relaxed model was worse on validation than "
            "the same model without its branches; --adaptive-theta, or a smaller --branch-factor, may help"
        )
    say(f"wrote {target}/; next: surgeon strip {target}")


def _relaxed_is_worse(result: FinetuneResult, metric: str, direction: str) -> int:
    sign = 1 if direction == "min" else -1
    evaluated = [entry for entry in result.history[1:] if entry["validation"]]
    pairs = [(entry["validation_relaxed"][metric], entry["validation"][metric]) for entry in evaluated]
    return sum(sign * relaxed > sign * clean for relaxed, clean in pairs)
