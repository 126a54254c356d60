"""Strip an opened model and prove the result: architecture, function, equivariance, metrics."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgeon.algebra.equivariance import ErrorSummary, equivariance_error, projection_error
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.conditions import check_folds
from surgeon.editing.recalibration import gathered_layers, layers_with_statistics, recalibrate
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import SurgeonError, TaskError
from surgeon.opening.description import check_code
from surgeon.opening.evaluation import evaluate, fitted, is_better, outputs_on
from surgeon.opening.task_calls import can_act, primary_metric, task_batches, task_forward, task_symmetry
from surgeon.opening.tasks import LoadedTask, sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import (
    EQUIVARIANCE_CHECK,
    EXACT_WHILE,
    FUNCTION_CHECK,
    Certificate,
    SiteRecord,
    Split,
    StripMode,
    Task,
)
from surgeon.proof.certificate import certify
from surgeon.proof.chance import Rows
from surgeon.proof.judging import flipped_rows, less_equivariant, other_function
from surgeon.support.imports import one_line
from surgeon.support.modes import in_evaluation_mode
from surgeon.support.modes import model_dtype as model_dtype
from surgeon.support.trees import to_dtype

OWN_DTYPE_BATCHES = 8
"""Batches to measure equivariance on, at least, where only a dtype with coarse rounding can tell."""

RECALIBRATION_BATCHES = 50
"""Training batches on which the statistics of normalisation layers are measured anew, unless the caller says."""


@dataclass(frozen=True)
class MeasureSettings:
    """How much to measure: elements per component of the group and batch, batches, seed."""

    elements: int = 4
    batches: int = 2
    seed: int = 0


@contextmanager
def at_full_relaxation(relaxation: Relaxation) -> Iterator[None]:
    """Set theta to 1 while the context is open: at the end of a training it is 0, where there is nothing to see."""
    before = relaxation.thetas
    relaxation.set_theta(1.0)
    try:
        yield
    finally:
        relaxation.set_thetas(before)


def task_equivariance(
    model: nn.Module,
    task: LoadedTask,
    group: Group,
    settings: MeasureSettings,
    watch: Callable[[str, int, Any, Any], None] | None = None,
) -> dict[str, ErrorSummary]:
    """Measure a model's equivariance error on validation batches, in eval mode and in its own dtype.

    Args:
        model: the network.
        task: data and actions.
        group: the group.
        settings: how much to measure.
        watch: as in :func:`equivariance_error`.
    """
    samples = [(to_dtype(batch, model_dtype(model)),) for batch in sample_batches(task, settings.batches)]
    symmetry = task_symmetry(task.task, group)
    with in_evaluation_mode(model):
        return equivariance_error(model, samples, symmetry, count=settings.elements, seed=settings.seed, watch=watch)


def both_precisions(
    workspace: Workspace,
    model: nn.Module,
    group: Group,
    settings: MeasureSettings,
    rows: dict[str, Rows] | None = None,
) -> dict[str, dict[str, ErrorSummary]]:
    """Measure in the model's own dtype and, where the network runs in it, float64: dtype to component to summary.

    Args:
        workspace: what builds the float64 twin.
        model: the network.
        group: the group.
        settings: how much to measure; without float64 more batches are taken.
        rows: filled with the rows of the model's own dtype, component by component, unless that is float64.
    """
    task = workspace.require_task()
    own = str(model_dtype(model)).removeprefix("torch.")
    exact = own == "float64" or workspace.runs_in_double
    more = settings if exact else dataclasses.replace(settings, batches=max(settings.batches, OWN_DTYPE_BATCHES))

    def watch(component: str, batch: int, moved: Any, expected: Any) -> None:
        if rows is not None and own != "float64":
            rows.setdefault(component, Rows()).add(batch, moved, expected)

    result = {own: task_equivariance(model, task, group, more, watch)}
    if own != "float64" and workspace.runs_in_double:
        result["float64"] = task_equivariance(workspace.double(model), task, group, settings)
    return result


def strip_and_certify(
    workspace: Workspace,
    mode: StripMode,
    settings: MeasureSettings | None = None,
    split: Split | None = "test",
    recalibration_batches: int = RECALIBRATION_BATCHES,
) -> tuple[nn.Module, Certificate]:
    """Strip the opened model in place and compare it with the original.

    With a task the recorded graphs, the function (stripped against clean evaluation), the equivariance of original,
    relaxed and stripped model, the projection error and the metrics are included. Statistics of normalisation layers
    that training has gathered, with the relaxed forward, are measured anew after the projection error.

    Args:
        workspace: an opened relaxed folder.
        mode: how to strip.
        settings: how much to measure.
        split: "validation" or "test", for the metrics; None for no metrics.
        recalibration_batches: training batches for the statistics, at most; 0 leaves them as training gathered them.

    Returns:
        The stripped model and its certificate; the caller has to refuse a certificate that has not ``passed``.

    Raises:
        SurgeryError: if a fold is wrong on a batch of the validation split; the model is unchanged.
    """
    relaxation, settings = workspace.relaxation, settings or MeasureSettings()
    assert relaxation is not None
    original, source = workspace.original()
    compared_source = check_code(workspace, original)
    seen = _check_folds(workspace) if mode == "fold" else None
    before = _observe(workspace, original, mode, settings)
    theta, sites = relaxation.theta, tuple(_with_words(record, seen) for record in strip(relaxation, mode))
    after = _compare_function(workspace, before, mode)
    recalibration = _recalibrate(workspace, original, recalibration_batches, settings.seed)
    certificate = certify(original, workspace.model, before.run)
    _judge(workspace, before, after, split)
    details = {
        **certificate.details,
        "group": relaxation.plan.group,
        "theta": list(theta),
        "source": compared_source,
        "relaxed_graph": None if workspace.files is None else workspace.files.config.graph,
        "original": {"file": source.path.name, "sha256": source.sha256},
        "measurement": {**dataclasses.asdict(settings), "split": split},
        **({} if workspace.task is None or workspace.runs_in_double else {"no float64": workspace.no_double}),
        **({"flipped rows": after.flipped} if after.flipped else {}),
        **({} if recalibration is None else {"recalibration": recalibration}),
    }
    return workspace.model, dataclasses.replace(
        certificate,
        checks={**certificate.checks, **after.checks},
        differences=(*certificate.differences, *after.differences),
        strip_mode=mode,
        sites=sites,
        equivariance=after.equivariance,
        metrics=after.metrics,
        projection_error=after.projection_error,
        details=details,
    )


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


_Equivariance = dict[str, Mapping[str, Mapping[str, ErrorSummary]]]


@dataclass(frozen=True)
class _Before:
    """What is known of a model while its branches are still in place; without a task only the original."""

    original: nn.Module
    settings: MeasureSettings
    batches: list[Any]
    relaxed: list[Any]
    clean: list[Any]
    equivariance: _Equivariance
    rows: dict[str, Rows]
    run: Callable[[nn.Module], Any] | None


@dataclass
class _After:
    """What the stripped model is found to be."""

    checks: dict[str, bool]
    differences: list[str]
    equivariance: _Equivariance
    metrics: dict[str, dict[str, float]]
    projection_error: float | None = None
    flipped: dict[str, Any] = field(default_factory=dict)


def _observe(workspace: Workspace, original: nn.Module, mode: StripMode, settings: MeasureSettings) -> _Before:
    task, model, relaxation = workspace.task, workspace.model, workspace.relaxation
    assert relaxation is not None
    if task is None:
        return _Before(original, settings, [], [], [], {}, {}, None)
    batches = [to_dtype(batch, model_dtype(model)) for batch in sample_batches(task, settings.batches)]
    relaxed, clean = outputs_on(model, task.task, batches), []
    if mode == relaxation.mode:
        with relaxation.clean():
            clean = _exact_outputs(workspace, batches)
    equivariance: _Equivariance = {}
    rows: dict[str, Rows] = {}
    if can_act(task.task):
        group = parse_group(relaxation.plan.group)
        equivariance["original"] = both_precisions(workspace, original, group, settings, rows)
        equivariance["relaxed"] = both_precisions(workspace, model, group, settings)
        with at_full_relaxation(relaxation):
            own = str(model_dtype(model)).removeprefix("torch.")
            equivariance["relaxed, theta 1"] = {own: task_equivariance(model, task, group, settings)}
    run = functools.partial(_forward, task.task, batches[0])
    return _Before(original, settings, batches, relaxed, clean, equivariance, rows, run)


def _forward(task: Task, batch: Any, model: nn.Module) -> Any:
    return task_forward(task, model, batch)


def _compare_function(workspace: Workspace, before: _Before, mode: StripMode) -> _After:
    """Compare the outputs of the model that has just been stripped with the relaxed ones and with clean evaluation."""
    task, model = workspace.task, workspace.model
    after = _After({}, [], dict(before.equivariance), {})
    if task is None:
        return after
    outputs = outputs_on(model, task.task, before.batches)
    after.projection_error = projection_error(before.relaxed, outputs)
    if before.clean:
        exact = workspace.double_or_own(model)
        strict = exact is not model and mode == "drop"  # a fold rounds the weights that it writes
        sentence = other_function(
            lambda batch: outputs_on(exact, task.task, [batch])[0],
            [to_dtype(batch, model_dtype(exact)) for batch in before.batches],
            before.clean,
            None if strict else model_dtype(model),
        )
        after.checks[FUNCTION_CHECK] = not sentence
        after.differences += [sentence] if sentence else []
    return after


def _exact_outputs(workspace: Workspace, batches: list[Any]) -> list[Any]:
    """Return the outputs in float64, or in the model's own dtype where it does not run in float64."""
    model = workspace.double_or_own(workspace.model)
    return outputs_on(model, workspace.require_task().task, [to_dtype(batch, model_dtype(model)) for batch in batches])


def _recalibrate(workspace: Workspace, original: nn.Module, at_most: int, seed: int) -> dict[str, Any] | None:
    """Recalibrate the layers whose statistics training has gathered; None if the model has no such layers at all.

    Returns:
        JSON-compatible: ``done`` and ``why`` not; or the number of batches, the primary validation metric before and
        after, and per layer what :class:`StatisticsChange` says.
    """
    model, task = workspace.model, workspace.task
    if not layers_with_statistics(model):
        return None
    gathered = gathered_layers(model, original)
    if not gathered:
        return {"done": False, "why": "they are those of the original"}
    if at_most == 0:
        return {"done": False, "why": "it was switched off; they are those that training gathered"}
    if task is None:
        return {"done": False, "why": "no task is known, so there are no training batches: give `--task FILE`"}
    try:
        batches = itertools.islice(task_batches(task.task, "train", seed), at_most)
    except TaskError as error:
        return {"done": False, "why": str(error)}
    metric, direction = primary_metric(task.task)
    before, used = evaluate(model, task.task, "validation").get(metric, math.nan), 0

    def forward(model: nn.Module, batch: Any) -> None:
        nonlocal used
        used += 1
        task_forward(task.task, model, fitted(batch, model))

    try:
        changes = recalibrate(model, batches, forward, gathered)
    except SurgeonError:
        raise
    except Exception as error:
        raise TaskError(
            f"expected training batches on which normalisation statistics can be recalibrated, but the forward fails "
            f"with {one_line(error)}: correct the task, or give `--no-recalibrate`"
        ) from error
    after = evaluate(model, task.task, "validation").get(metric, math.nan)
    layers = {change.name: dataclasses.asdict(change) for change in changes}
    reasons = dict.fromkeys(change.note for change in changes)
    if "" not in reasons:
        return {"done": False, "why": "; ".join(reasons), "layers": layers}
    return {
        "done": True,
        "batches": used,
        "metric": metric,
        "before": before,
        "after": after,
        "worse": is_better(before, after, direction),
        "layers": layers,
    }


def _judge(workspace: Workspace, before: _Before, after: _After, split: Split | None) -> None:
    """Add equivariance and metrics of the stripped model to what is known after stripping."""
    task, model, relaxation = workspace.task, workspace.model, workspace.relaxation
    assert relaxation is not None
    if task is None:
        return
    if before.equivariance:
        group = parse_group(relaxation.plan.group)
        rows: dict[str, Rows] = {}
        after.equivariance["stripped"] = both_precisions(workspace, model, group, before.settings, rows)
        both = {"original": before.rows, "stripped": rows}
        after.flipped = flipped_rows(both) if rows else {}
        worse = less_equivariant(after.equivariance, both)
        after.checks[EQUIVARIANCE_CHECK] = not worse
        after.differences += worse
    if split is not None:
        after.metrics = {
            "original": evaluate(before.original, task.task, split),
            "stripped": evaluate(model, task.task, split),
        }
