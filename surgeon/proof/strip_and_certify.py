"""Strip an opened model and prove the result: architecture, function, equivariance, metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgeon.algebra.equivariance import projection_error
from surgeon.algebra.groups.core import Group
from surgeon.editing.adjust import other_values
from surgeon.editing.conditions import check_folds
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.spectrum import BranchContent, branch_contents
from surgeon.editing.strip import strip
from surgeon.files.checkpoint import Checkpoint
from surgeon.opening.description import check_code
from surgeon.opening.evaluation import Judging, fitted, outputs_on
from surgeon.opening.loading import named_as
from surgeon.opening.task_calls import can_act, task_batches, task_forward
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import EXACT_WHILE, FUNCTION_CHECK, Certificate, SiteRecord, Split, StripMode
from surgeon.proof.amounts import RECALIBRATION_BATCHES, MeasureSettings
from surgeon.proof.certify import certify_opened, metrics_of, probed
from surgeon.proof.equivariance import at_full_relaxation, both_precisions, task_equivariance
from surgeon.proof.recalibrated import recalibrate_gathered
from surgeon.proof.records import ADJUSTED_CHECK
from surgeon.proof.same_function import other_function, other_weights
from surgeon.proof.verdict import Equivariance, Finding, compared
from surgeon.support.modes import model_dtype
from surgeon.support.stages import Stage, timed
from surgeon.support.trees import to_dtype


def strip_and_certify(
    workspace: Workspace,
    mode: StripMode,
    settings: MeasureSettings | None = None,
    split: Split | None = "test",
    recalibration_batches: int = RECALIBRATION_BATCHES,
    stage: Stage = timed,
) -> tuple[nn.Module, Certificate]:
    """Strip the opened model in place and compare it with the original.

    With a task the recorded graphs, the function (stripped against clean evaluation), the equivariance of original,
    relaxed and stripped model, the projection error and the metrics are included. Statistics of normalisation layers
    that training has gathered, with the relaxed forward, are measured anew after the projection error.

    Args:
        mode: how to strip.
        split: "validation" or "test", for the metrics; None for no metrics.
        recalibration_batches: training batches for the statistics, at most; 0 leaves them as training gathered them.
        stage: opened and closed around each of the six parts.

    Returns:
        The stripped model and its certificate; the caller has to refuse a certificate that has not ``passed``.

    Raises:
        SurgeryError: if a fold is wrong on a batch of the validation split; the model is unchanged.
    """
    relaxation, model, settings = workspace.relaxation, workspace.model, settings or MeasureSettings()
    assert relaxation is not None
    with stage("opening the original"):
        source = workspace.original_file  # its network later, so that it is not in memory beside the branches
    with stage("measuring the relaxed model"):
        seen = _check_folds(workspace) if mode == "fold" else None
        group = relaxation.plan.group_object if workspace.task is not None and can_act(workspace.task.task) else None
        before = _observe(workspace, relaxation, mode, group, settings)
    with stage("stripping"):
        contents = branch_contents(relaxation)
        theta, sites = relaxation.theta, tuple(_with_words(record, seen) for record in strip(relaxation, mode))
        function, change = _compare_function(workspace, before, mode)
    with stage("comparing with the original"):
        models = {"original": workspace.reference[0], "stripped": model}
        compared_source = check_code(workspace, models["original"])
        recalibration = recalibrate_gathered(workspace, models["original"], recalibration_batches, settings.seed)
    details = {
        **_of_folder(workspace, relaxation),
        "theta": list(theta),
        "source": compared_source,
        "measurement": {**dataclasses.asdict(settings), "split": split},
        **_done_besides(workspace, recalibration, contents),
    }
    with stage("computing metrics"):
        pairs: dict[str, Any] = {}
        metrics = {} if split is None else metrics_of(workspace, models, split, pairs)
        details |= {**({"pairs": pairs} if pairs else {}), **probed(workspace, models, split)}
    with stage("certifying"):
        verdict = certify_opened(workspace, models, group, settings)
    errors = {**verdict.equivariance, **before.equivariance}
    errors = {name: errors[name] for name in ("original", *before.equivariance, "stripped") if name in errors}
    found = verdict.joined(*_compare_changes(workspace, model, source), *function, metrics=metrics, details=details)
    shown: dict[str, Any] = {"sites": sites, "equivariance": errors, "projection_error": change}
    return model, dataclasses.replace(found.certificate(), strip_mode=mode, **shown)


def _of_folder(workspace: Workspace, relaxation: Relaxation) -> dict[str, Any]:
    """Return what the folder was made from and says of itself, the task of its metrics, and why there is no float64."""
    config = None if workspace.files is None else workspace.files.config
    coarse = workspace.task is not None and not workspace.runs_in_double
    return {
        "original": {"file": workspace.original_file.path.name, "sha256": workspace.original_file.sha256},
        "group": relaxation.plan.group,
        "arm": None if config is None else config.arm,
        "relaxed_graph": None if config is None else config.graph,
        "judging": None if workspace.task is None else dataclasses.asdict(Judging.of(workspace.task.task)),
        **({"no float64": workspace.no_double} if coarse else {}),
    }


def _done_besides(workspace: Workspace, recalibration: Any, contents: Sequence[BranchContent]) -> dict[str, Any]:
    """Return what was in the branches, what was changed before training, and what of statistics was measured anew."""
    shares = {each.site: {"equivariant": each.equivariant, "random": each.random} for each in contents}
    listed = {"adjustments": dataclasses.asdict(workspace.adjustments)} if workspace.adjustments else {}
    return {"branches": shares, **({} if recalibration is None else {"recalibration": recalibration}), **listed}


def _compare_changes(workspace: Workspace, model: nn.Module, source: Checkpoint) -> list[Finding]:
    """Compare what was changed before training, as it is listed, with the two checkpoints."""
    if not workspace.adjustments:
        return []
    tensors = model.state_dict()
    sentences = other_values(workspace.adjustments.changes, named_as(source, tensors), tensors)
    return [compared(ADJUSTED_CHECK, sentences)]


def _check_folds(workspace: Workspace) -> dict[str, int] | None:
    """Try the folds that take something for constant on the whole validation split; None without a task."""
    relaxation = workspace.relaxation
    if workspace.task is None or relaxation is None:
        return None
    task = workspace.task.task

    def run(model: nn.Module, batch: Any) -> None:
        task_forward(task, model, fitted(batch, model))

    return check_folds(relaxation, task_batches(task, "validation", 0), run, "the validation split")


def _with_words(record: SiteRecord, seen: Mapping[str, int] | None) -> SiteRecord:
    """Add to the record of a fold that takes something for constant on how many batches that was seen."""
    if EXACT_WHILE not in record.note:
        return record
    count = (seen or {}).get(f"{record.name}.{record.argument}" if record.name else record.argument, 0)
    words = f"as it was on {count} validation batches" if count else "which was not looked at, for lack of data"
    return dataclasses.replace(record, note=f"{record.note}, {words}")


@dataclass(frozen=True)
class _Relaxed:
    """What the model computes while its branches are still in place; nothing without a task."""

    batches: Sequence[Any] = ()
    outputs: Sequence[Any] = ()
    clean: Sequence[Any] = ()
    equivariance: Equivariance = field(default_factory=dict)
    folded: nn.Module | None = None
    """The float64 twin, folded without rounding; None where there is none, or nothing is folded."""


def _observe(
    workspace: Workspace, relaxation: Relaxation, mode: StripMode, group: Group | None, settings: MeasureSettings
) -> _Relaxed:
    task, model = workspace.task, workspace.model
    if task is None:
        return _Relaxed()
    batches = [to_dtype(batch, model_dtype(model)) for batch in sample_batches(task, settings.batches)]
    outputs, clean = outputs_on(model, task.task, batches), []
    if mode == relaxation.mode:
        with relaxation.clean():
            exact = workspace.double_or_own(model)
            clean = outputs_on(exact, task.task, [to_dtype(batch, model_dtype(exact)) for batch in batches])
    equivariance: dict[str, Any] = {}
    if group is not None and relaxation.branches:
        equivariance["relaxed"] = both_precisions(workspace, model, group, settings)
        with at_full_relaxation(relaxation):
            own = str(model_dtype(model)).removeprefix("torch.")
            equivariance["relaxed, theta 1"] = {own: task_equivariance(model, task, group, settings)}
    folded = _folded_twin(workspace, relaxation) if clean and mode == "fold" else None
    return _Relaxed(batches, outputs, clean, equivariance, folded)


def _folded_twin(workspace: Workspace, relaxation: Relaxation) -> nn.Module | None:
    """Return the float64 twin, folded; None without one, or where a fold takes for constant what is only nearly so."""
    held = any(branch.fold_map and branch.fold_map.holds_while for branch in relaxation.branches.values())
    if held or not relaxation.branches or not workspace.runs_in_double:
        return None
    twin = workspace.double(workspace.model)
    strip(twin, "fold")
    return twin


def _compare_function(workspace: Workspace, before: _Relaxed, mode: StripMode) -> tuple[list[Finding], float | None]:
    """Compare the model that has just been stripped with clean evaluation; also return the projection error."""
    task, model = workspace.task, workspace.model
    if task is None:
        return [], None
    change = projection_error(before.outputs, outputs_on(model, task.task, before.batches))
    if not before.clean:
        return [], change
    # first, since the next question for the twin gives it the weights of the stripped model
    off = other_weights(model, before.folded) if before.folded is not None else ""
    exact = before.folded or workspace.double_or_own(model)
    strict = before.folded is not None or (exact is not model and mode == "drop")  # a fold rounds what it writes
    sentence = off or other_function(
        lambda batch: outputs_on(exact, task.task, [batch])[0],
        [to_dtype(batch, model_dtype(exact)) for batch in before.batches],
        before.clean,
        None if strict else model_dtype(model),
    )
    return [compared(FUNCTION_CHECK, [sentence] if sentence else [])], change
