"""Train a checkpoint or a relaxed folder; write the run folder, from which the same call goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.editing.adjust import NOTHING
from surgeon.errors import ExistsError, InterruptedTrainingError, UsageError
from surgeon.files.outputs import writing_alone
from surgeon.files.relaxed import read_relaxed
from surgeon.files.seals import recover
from surgeon.opening.description import check_code
from surgeon.opening.evaluation import evaluate_probes, in_words
from surgeon.opening.next_command import strip_command
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import RelaxSettings
from surgeon.opening.workspace import Workspace
from surgeon.optim.blocks import blocks_in_words
from surgeon.plan import Plan
from surgeon.support.modes import device_of
from surgeon.training.arms import ARMS, Arm, Contender
from surgeon.training.costs import training_costs
from surgeon.training.engine import Finetuner
from surgeon.training.progress import Progress
from surgeon.training.replay import teacher_of
from surgeon.training.runs import has_run, read_record, restore_run, save_run
from surgeon.training.settings import FinetuneSettings
from surgeon.training.starting import Start, start_from
from surgeon.training.state import FinetuneResult

Probed = Mapping[str, Mapping[str, float]]
"""Names, of probes or of models, to metrics."""

NO_BRANCHES = "training without branches"


@dataclass(frozen=True)
class Finetuned:
    """What :func:`finetune` has done.

    Attributes:
        arm: how the branches took part.
        metric: that of the validation split by which the best epoch was chosen.
        worse: evaluations in which the relaxed model was worse than the same model without its branches.
        next: the command that goes on with the folder.
        probes: by the names of the probes, their metrics of "original" and "stripped".
    """

    folder: Path
    arm: Arm
    metric: str
    worse: int
    result: FinetuneResult
    next: str
    probes: Mapping[str, Probed]


def finetune(
    path: str | Path,
    target: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    arm: str | None = None,
    options: OpenOptions | None = None,
    relaxing: RelaxSettings | None = None,
    save_every: int | None = None,
    until: int | None = None,
    trackers: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Finetuned:
    """Fine-tune a checkpoint, or a relaxed folder while theta goes 0 -> 1 -> 0; what is given stays as it is.

    The run folder is written after every evaluation: best weights by clean validation, records, and what a resume
    needs. If it holds a run already, that goes on. In a distributed training every process has to call it.

    Args:
        path: the relaxed folder, a checkpoint that was never relaxed, or the address of one of them on the Hub.
        target: the run folder; without branches if the arm has none.
        settings: everything else that decides the outcome; the schedule is that of the relaxed folder. Where no
            branches are trained, optimiser and rate may be the task's own, see ``FinetuneSettings.settled``.
        arm: an arm, see ``surgeon.training.arms``, with settings of its own as in a comparison if it has any:
            ``plain@soap``; default is a folder's strip mode, and ``plain`` for a checkpoint.
        options: how to find model and task.
        relaxing: where branches go in a checkpoint that was never relaxed, and its group.
        save_every: optimiser steps between further saves.
        until: the epoch after which it pauses, with rate and theta of the whole training; None for the end.
        trackers: "tensorboard", "wandb" or "mlflow": where records go, too.
        force: start anew, and replace what is there.
        progress: told how it goes on, in the first process.

    Raises:
        UsageError: if another run, or an input, is in the place, or settings are unusable.
        ExistsError: if something else is in the place, or another process is writing there.
        CheckpointError: if the checkpoint cannot be opened, or the code of a relaxed folder has changed.
        PlanError: if nothing of a checkpoint can be relaxed.
        TrainingError: if the training diverges or is interrupted.
    """
    target, options, settings = Path(target), options or OpenOptions(), settings or FinetuneSettings()
    with writing_alone(target):
        recover(target)  # first of all: a run that a killed process was saving counts
        resuming = has_run(target) and not force
        start = _started(path, target, arm, options, relaxing, resuming, force)
        workspace = start.workspace
        finetuner = _finetuner(start, settings, arm, trackers, target.parent)
        told = progress if progress is not None and finetuner.accelerator.is_main_process else Progress()
        before = _originals_on_other_data(workspace)  # a restored run may share its tensors with the original
        if resuming:
            _go_on(target, start, finetuner, told)
        _tell_start(told, start, finetuner, before)
        with _safe(target, finetuner):
            result = finetuner.run(told.step, _saving(target, workspace, force, told), save_every, until)
        probed = _probed(target, workspace, finetuner, before)
    told_of = (finetuner.selection.metric, _times_worse(finetuner), result, strip_command(target, workspace))
    return Finetuned(target, start.arm, *told_of, probed)


def _finetuner(
    start: Start, settings: FinetuneSettings, arm: str | None, trackers: Sequence[str], folder: Path
) -> Finetuner:
    """Return the run, which has not begun."""
    settings = settings if arm is None else Contender.parse(arm).settings(settings)
    workspace, task = start.workspace, start.workspace.require_task().task
    relaxation, _ = workspace.require_relaxed()
    preferred = getattr(task, "preferred", {}) if start.arm is ARMS["plain"] else {}
    settings = dataclasses.replace(settings.settled(preferred), schedule=relaxation.schedule)
    given = (settings, start.arm, start.added(settings), trackers, folder, relaxation.plan)
    return Finetuner(workspace.model, task, *given, teacher_of(settings, workspace.fresh_original, task))


def _go_on(target: Path, start: Start, run: Finetuner, told: Progress) -> None:
    """Restore a run, and say where it goes on."""
    _require_same_start(target, start)
    restore_run(target, run)
    told.say(f"going on after epoch {run.state.epoch} of {run.settings.epochs} in {target}/")


def _originals_on_other_data(workspace: Workspace) -> Probed:
    if not workspace.probes:
        return {}
    return evaluate_probes(workspace.fresh_original().to(device_of(workspace.model)), workspace.probes)


def _tell_start(told: Progress, start: Start, run: Finetuner, before: Probed) -> None:
    """Say what is trained and how, and record what probes measured before."""
    workspace, (relaxation, _) = start.workspace, start.workspace.require_relaxed()
    for sentence in start.said:
        told.say(sentence)
    costs = training_costs(workspace.model, workspace.require_task().task, relaxation) if relaxation.branches else None
    told.say(NO_BRANCHES if costs is None else costs.sentence())
    for name, metrics in before.items():
        told.say(f"before, on {name}: {in_words(workspace.probes[name].task, metrics)}")
        run.state.probes[name] = {"original": dict(metrics)}
    if run.replay is not None:
        told.say(run.replay.sentence)
    told.say(f"{run.settings.chosen_optimizer}, learning rate {run.settings.chosen_rate:g}{_why(run)}")
    if run.weights:
        told.say(f"{run.settings.optimizer} acts on {blocks_in_words(run.weights)}; AdamW on the rest")
    told.begin(f"arm {start.arm.name}", run.selection.metric)


def _why(run: Finetuner) -> str:
    """Say what chose optimiser and rate, if the task did."""
    preferred = getattr(run.task, "preferred", {})
    same = all(getattr(run.settings, name, None) == value for name, value in preferred.items())
    return ", as its task prefers" if preferred and same else ""


def _probed(
    target: Path, workspace: Workspace, run: Finetuner, before: Probed
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the metrics on other data, with those of the best weights as stripping will leave them; save them."""
    probed = {}
    if before and run.accelerator.is_main_process:
        with workspace.require_relaxed()[0].clean() as model:
            after = evaluate_probes(model, workspace.probes)
        probed = {name: {"original": dict(before[name]), "stripped": after[name]} for name in before}
    if before and run.state.ended(run.settings.epochs):
        run.state.probes = probed
        save_run(target, run, workspace)
    return probed


def _saving(target: Path, workspace: Workspace, force: bool, told: Progress) -> Callable[[Finetuner], None]:
    """Return what saves a run, and tells every evaluation; the first is of the model before its training."""

    def save(run: Finetuner) -> None:
        save_run(target, run, workspace, force)
        state = run.state
        if not state.epoch_step:
            when = f"epoch {state.epoch}" if state.step else "before"
            best = ", the best so far" if state.step and state.best_epoch == state.epoch else ""
            told.say(f"{when}: {in_words(run.task, state.history[-1]['validation'])}{best}")

    return save


@contextmanager
def _safe(target: Path, run: Finetuner) -> Iterator[None]:
    """Say, when a training ends early, what of it was saved."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        saved = has_run(target)
        kept = f"your run is safe in {target}/ up to epoch {read_record(target).state.epoch}" if saved else ""
        if isinstance(error, KeyboardInterrupt):
            raise InterruptedTrainingError(
                f"interrupted in epoch {run.state.epoch}: {kept or 'nothing was written yet'}; give the same command "
                "again to go on"
            ) from None
        if kept:
            error.add_note(kept)
        raise


def _started(
    path: str | Path,
    target: Path,
    arm: str | None,
    options: OpenOptions,
    relaxing: RelaxSettings | None,
    resuming: bool,
    force: bool,
) -> Start:
    """Open what is trained, after all that can be refused without."""
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]) and not (resuming or force):
        raise ExistsError(
            f"{str(target)!r} exists and is not a run that can be resumed: choose another `-o`, or `--force`"
        )
    if resuming:  # what was changed then counts, and is not asked for again
        options = dataclasses.replace(options, adjustments=read_relaxed(target).config.adjustments or NOTHING)
    start = start_from(path, None if arm is None else Contender.parse(arm).arm.name, options, relaxing)
    workspace = start.workspace
    # a run that was pulled goes on where it lies
    workspace.refuse_output(target, in_place=resuming and workspace.path.resolve() == target.resolve())
    workspace.require_task()
    if not start.bare:
        check_code(workspace)
    return start


def _require_same_start(target: Path, start: Start) -> None:
    """Refuse to go on with a run that was started from another checkpoint or other sites."""
    workspace = start.workspace
    mine, theirs = workspace.require_relaxed()[1].config, read_relaxed(target).config
    plans = [mine.plan, theirs.plan] if not start.bare else [_found_again(each.plan) for each in (mine, theirs)]
    same = {
        "original checkpoint": mine.base["sha256"] == theirs.base["sha256"],
        "plan": plans[0] == plans[1],
        "changes before training": mine.adjustments == theirs.adjustments,
    }
    different = [name for name, equal in same.items() if not equal]
    if different:
        raise UsageError(
            f"expected the run in {str(target)!r} to have started from {workspace.name!r}, but its "
            f"{' and '.join(different)} differ: choose another `-o`, or start anew with `--force`"
        )


def _found_again(plan: Plan) -> Any:
    """Return what of a plan is the same if it is found anew: measured residuals depend on threads and processor."""
    return plan.group, [(site.key, site.shape, site.rank, site.blocks) for site in plan.sites]


def _times_worse(finetuner: Finetuner) -> int:
    metric, sign = finetuner.selection.metric, 1 if finetuner.selection.direction == "min" else -1
    evaluated = [entry for entry in finetuner.state.history[1:] if entry["validation"]]
    pairs = [(entry["validation_relaxed"][metric], entry["validation"][metric]) for entry in evaluated]
    return sum(sign * relaxed > sign * clean for relaxed, clean in pairs)
