"""What needs the model, and mostly the task: classes, graphs, buffers, equivariance and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckpointError, GroupError, TaskError
from surgeon.export.stripped import Stripped
from surgeon.opening.description import not_comparable, original_graph
from surgeon.opening.evaluation import evaluate
from surgeon.opening.loading import load_into
from surgeon.opening.task_calls import can_act, task_forward
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import EQUIVARIANCE_CHECK, GRAPH_CHECK
from surgeon.proof.certificate import CONSTANTS_CHECK, FINITE_CHECK, Comparison, classes_of, compare_models
from surgeon.proof.chance import Rows
from surgeon.proof.judging import less_equivariant
from surgeon.proof.verdict import MeasureSettings, both_precisions
from surgeon.proof.verification.agreement import NOISE, SIGNAL, same_error
from surgeon.proof.verification.formats import GIVE_TASK, Clean, format_findings
from surgeon.proof.verification.reading import Recorded
from surgeon.proof.verification.result import Equivariance, Finding, compared, unchecked, unrecorded
from surgeon.proof.verification.stored import GIVE_ORIGINAL
from surgeon.support.modes import model_dtype
from surgeon.support.trees import to_dtype
from surgeon.support.versions import versions

METRIC_TOLERANCE = 1e-4
"""Largest relative deviation of a metric computed again: float32 sums differ between machines and thread counts."""

_FROM_MODEL = ("state-dict keys and order", "shapes", "dtypes", "module classes", FINITE_CHECK, "running variances")
_FROM_TASK = ("buffers", GRAPH_CHECK, CONSTANTS_CHECK)
SOURCE_CHECK, HASHES_CHECK = "the network's source since it was relaxed", "recorded graph hashes"
RECOMPUTED = {*_FROM_MODEL, *_FROM_TASK, EQUIVARIANCE_CHECK}
"""Checks of a certificate that follow from the two checkpoints, the model and the task."""


@dataclass
class Rebuilt:
    """What was found on the two models."""

    findings: list[Finding] = field(default_factory=list)
    equivariance: Equivariance = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def check_models(workspace: Workspace, clean: Clean, group: str | None, alone: bool = False) -> Rebuilt:
    """Build original and result, and compare them with each other and with what is recorded.

    Args:
        workspace: the opened original; without one, the folder's weights themselves.
        clean: the folder, whose weights have the original's form.
        group: the group's name, if the user gave it.
        alone: whether the original is missing.
    """
    found, recorded = Rebuilt(), clean.recorded
    original, result = None if alone else workspace.original()[0], workspace.original()[0]
    try:
        load_into(result, clean.tensors, "model.safetensors")
    except CheckpointError as error:
        found.findings.append(compared("weights in the model", [str(error)]))
        return found
    _classes(found, result, recorded)
    if original is None:
        why = GIVE_ORIGINAL if workspace.task is not None else f"{GIVE_ORIGINAL}; {GIVE_TASK}"
        found.findings += [unchecked(name, why) for name in (*_FROM_TASK, HASHES_CHECK, SOURCE_CHECK)]
    else:
        _compare(found, workspace, original, result, recorded)
    models = {"stripped": result} if original is None else {"original": original, "stripped": result}
    acting = _equivariance(found, workspace, models, recorded, group)
    _metrics(found, workspace, models, recorded)
    task, stripped = workspace.task, None
    if task is not None and clean.has_formats:
        # Without an original, a file is compared with what the result's own weights give.
        stripped = Stripped(result, original or result, workspace.double_or_own(result), task.task, acting)
    found.findings += format_findings(clean, workspace, stripped)
    return found


def _classes(found: Rebuilt, result: nn.Module, recorded: Recorded) -> None:
    classes = classes_of(result)
    listed = [
        f"module {name or '(model)'}: recorded class is {recorded.classes.get(name)}, found {classes.get(name)}"
        for name in dict.fromkeys([*recorded.classes, *classes])
        if not _same_class(recorded.classes.get(name, ""), classes.get(name, ""))
    ]
    found.findings.append(compared("recorded module classes", listed[:5], f"{len(recorded.classes)} modules"))


def _compare(found: Rebuilt, workspace: Workspace, original: nn.Module, result: nn.Module, recorded: Recorded) -> None:
    """Repeat the checks that a file can carry; hooks, attributes and trainable flags it cannot."""
    run = _run_of(workspace, original)
    comparison = compare_models(original, result, run)
    names = (*_FROM_MODEL, *(_FROM_TASK if run else ()))
    for name, sentences in comparison.differences.items():
        if name in names:
            found.findings.append(compared(name, sentences[:5]))
    if run is None:
        found.findings += [unchecked(name, GIVE_TASK) for name in (*_FROM_TASK, HASHES_CHECK, SOURCE_CHECK)]
        return
    _buffers(found, comparison, result, recorded)
    _graphs(found, comparison, result, recorded)
    _source(found, workspace, original, recorded)


def _same_class(left: str, right: str) -> bool:
    """Compare two classes; one of a task file has no module name of its own, and ``--model`` can name another."""
    own = [name.removeprefix("task") for name in (left, right) if name.startswith("task.")]
    return left == right or any(left.endswith(name) and right.endswith(name) for name in own)


def _run_of(workspace: Workspace, model: nn.Module) -> Callable[[nn.Module], Any] | None:
    """Return the forward on the first validation batch that stripping recorded; None without a task."""
    if workspace.task is None:
        return None
    task, batch = workspace.task.task, to_dtype(sample_batches(workspace.task, 1)[0], model_dtype(model))
    return lambda model: task_forward(task, model, batch)


def _buffers(found: Rebuilt, comparison: Comparison, result: nn.Module, recorded: Recorded) -> None:
    # A buffer that is not persistent is in no file.
    stored, now = result.state_dict(), comparison.buffers_written
    sentences = [
        f"buffer {name}: recorded change is {recorded.buffers_written.get(name, 0.0)}, found {now.get(name, 0.0)}"
        for name in dict.fromkeys([*recorded.buffers_written, *now])
        if name in stored and not _same_number(recorded.buffers_written.get(name, 0.0), now.get(name, 0.0), 1e-12)
    ]
    found.findings.append(compared("recorded changes of buffers", sentences[:5]))


def _graphs(found: Rebuilt, comparison: Comparison, result: nn.Module, recorded: Recorded) -> None:
    if recorded.graphs is None:
        found.findings.append(unrecorded(HASHES_CHECK))
        return
    now, installed = comparison.details.get("graph_sha256", ()), versions(result)
    others = [name for name, version in recorded.versions.items() if installed.get(name) != version]
    if others:
        words = ", ".join(f"{name} {recorded.versions[name]}, here {installed.get(name, 'none')}" for name in others)
        note = f"recorded graphs depend on versions (made with {words}): only original and result were compared"
        found.findings.append(unchecked(HASHES_CHECK, note))
        return
    sentences = [
        f"graph of the {model}: recorded hash is {before}, found {after}; the certificate, the model's code or the "
        "task's data have changed"
        for model, before, after in zip(("original", "result"), recorded.graphs, now, strict=False)
        if before != after
    ]
    found.findings.append(compared(HASHES_CHECK, sentences))


def _source(found: Rebuilt, workspace: Workspace, original: nn.Module, recorded: Recorded) -> None:
    """Compare the original's graph with the one of the relaxed folder, which is of one batch and certain versions."""
    known = recorded.relaxed_graph
    if known is None:
        found.findings.append(unrecorded(SOURCE_CHECK))
        return
    now = original_graph(original, workspace.require_task())
    why = not_comparable(known, now)
    if why:
        found.findings.append(unchecked(SOURCE_CHECK, why))
        return
    same = now["sha256"] == known["sha256"]
    sentence = (
        f"on the same data the code computes a graph with the hash {now['sha256']}, and when it was relaxed with "
        f"{known['sha256']}: the code or the certificate has changed"
    )
    found.findings.append(compared(SOURCE_CHECK, [] if same else [sentence]))


def _equivariance(
    found: Rebuilt, workspace: Workspace, models: Mapping[str, nn.Module], recorded: Recorded, group_name: str | None
) -> Group | None:
    """Measure again with the recorded seed and counts, and judge as stripping does; return the group if it is known."""
    task = workspace.task
    if task is None or not can_act(task.task):
        why = GIVE_TASK if task is None else f"{GIVE_TASK} with act and act_output"
        found.findings.append(unchecked(EQUIVARIANCE_CHECK, why))
        return None
    group = _group(found, recorded, group_name)
    if group is None:
        return None
    settings = recorded.settings or MeasureSettings()
    rows: dict[str, dict[str, Rows]] = {name: {} for name in models}
    now = {name: both_precisions(workspace, model, group, settings, rows[name]) for name, model in models.items()}
    found.equivariance = now
    how = f"{settings.batches} batches, {settings.elements} elements, seed {settings.seed}"
    found.findings.append(
        compared(EQUIVARIANCE_CHECK, less_equivariant(now, rows), how)
        if "original" in models
        else unchecked(EQUIVARIANCE_CHECK, GIVE_ORIGINAL)
    )
    if "stripped" not in recorded.equivariance or recorded.settings is None:
        found.findings.append(unrecorded("recorded equivariance"))
        return group
    sentences = [
        text for model in now for text in _other_errors(model, recorded.equivariance.get(model, {}), now[model])
    ]
    note = f"counts equal, errors within {SIGNAL:.0%}, or a factor of {NOISE:g} at rounding level"
    found.findings.append(compared("recorded equivariance", sentences, note))
    return group


def _group(found: Rebuilt, recorded: Recorded, given: str | None) -> Group | None:
    """Return the group; one that is code is only imported if the user names it."""
    if given is None and (recorded.group is None or ":" in recorded.group):
        why = "the certificate does not name it" if recorded.group is None else f"its code, {recorded.group}, is run"
        found.findings.append(unchecked(EQUIVARIANCE_CHECK, f"give --group ({why})"))
        return None
    try:
        named = None if recorded.group is None or ":" in recorded.group else parse_group(recorded.group)
    except GroupError as error:
        found.findings.append(compared("group", [f"the certificate names no group: {error}"]))
        return None
    group = named if given is None else parse_group(given)
    if given is not None and recorded.group is not None:
        same = given == recorded.group if named is None else group is not None and group.name == named.name
        sentence = f"the group is {given} here, and {recorded.group} in the certificate"
        found.findings.append(compared("group", [] if same else [sentence]))
    return group


def _other_errors(
    model: str,
    recorded: Mapping[str, Mapping[str, ErrorSummary]],
    now: Mapping[str, Mapping[str, ErrorSummary]],
) -> Iterator[str]:
    for dtype in dict.fromkeys([*recorded, *now]):
        for component in dict.fromkeys([*recorded.get(dtype, {}), *now.get(dtype, {})]):
            where = f"equivariance error of the {model} under {component} in {dtype}"
            before, after = recorded.get(dtype, {}).get(component), now.get(dtype, {}).get(component)
            if before is None or after is None:
                yield f"{where}: {'not recorded' if before is None else 'recorded, but not found now'}"
                continue
            if before.count != after.count:
                yield f"{where}: recorded are {before.count} measurements, made now were {after.count}"
            for name in ("mean", "median", "maximum"):
                old, new = getattr(before, name), getattr(after, name)
                if not same_error(old, new, dtype):
                    yield f"{where}: recorded {name} is {old:.1e}, found {new:.1e}"


def _metrics(found: Rebuilt, workspace: Workspace, models: Mapping[str, nn.Module], recorded: Recorded) -> None:
    task, split = workspace.task, recorded.split or "test"
    if task is None:
        found.findings.append(unchecked("metrics", GIVE_TASK))
        return
    try:
        now = {name: evaluate(model, task.task, split) for name, model in models.items()}
    except TaskError as error:
        found.findings.append(unchecked("metrics", str(error)))
        return
    found.metrics = now
    if not recorded.metrics or recorded.split is None:
        found.findings.append(unrecorded("metrics"))
        return
    sentences = [
        f"{name} of the {model} on the {split} split: recorded is {before}, found {after}"
        for model, values in now.items()
        for name in dict.fromkeys([*recorded.metrics.get(model, {}), *values])
        for before, after in [(recorded.metrics.get(model, {}).get(name, math.nan), values.get(name, math.nan))]
        if not _same_number(before, after, METRIC_TOLERANCE)
    ]
    found.findings.append(compared("metrics", sentences, f"relative tolerance {METRIC_TOLERANCE:g}, {split} split"))


def _same_number(left: float, right: float, tolerance: float) -> bool:
    if not (math.isfinite(left) and math.isfinite(right)):
        return math.isfinite(left) == math.isfinite(right)
    return abs(left - right) <= tolerance * max(abs(left), abs(right))
