"""Certify the weights of a clean folder again, as stripping did, with what is known of original, model and task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.adjust import not_allowed
from surgeon.errors import GroupError, TaskError, UsageError
from surgeon.export.stripped import Stripped
from surgeon.files.clean import WEIGHTS_FILE, same_form
from surgeon.files.content import json_compatible
from surgeon.opening.clean import GIVE_ORIGINAL, GIVE_TASK, OpenedClean, open_models
from surgeon.opening.description import not_comparable, original_graph
from surgeon.opening.task_calls import can_act
from surgeon.opening.workspace import Workspace
from surgeon.plan import EQUIVARIANCE_CHECK, GRAPH_CHECK
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.architecture import (
    CONSTANTS_CHECK,
    FINITE_CHECK,
    VARIANCE_CHECK,
    classes_of,
    impossible_statistics,
    newly_non_finite,
)
from surgeon.proof.certify import certify_opened, metrics_of, probed
from surgeon.proof.exports import has_exports
from surgeon.proof.records import (
    ADJUSTED_CHECK,
    COUNTS,
    HASHES_CHECK,
    OTHER_DATA,
    SOURCE_CHECK,
    Field,
    compare_probe,
    same_class,
    stored_changes,
    what_is_missing,
)
from surgeon.proof.verdict import SHOWN, Finding, ModelVerdict, compared, unchecked
from surgeon.support.attributes import tensor_sha256
from surgeon.support.versions import differing_versions

_FROM_FILES = {FINITE_CHECK: newly_non_finite, VARIANCE_CHECK: impossible_statistics}
_FROM_MODEL = ("state-dict keys and order", "shapes", "dtypes", "module classes")
_FROM_TASK = ("buffers", GRAPH_CHECK, CONSTANTS_CHECK)
RECOMPUTED = {*_FROM_FILES, *_FROM_MODEL, *_FROM_TASK, EQUIVARIANCE_CHECK, ADJUSTED_CHECK}
"""Checks of a certificate that a file can carry; hooks, attributes and trainable flags it cannot."""

_NEEDS = {
    "module classes": ("original", "model"),
    **dict.fromkeys(_FROM_TASK, ("original", "task")),
    EQUIVARIANCE_CHECK: ("original", "task", "group"),
}


@dataclass
class CertifiedAgain:
    """What certifying a folder again gives, as far as that goes.

    Attributes:
        found: by the names of ``FIELDS``, what its certificate should say.
        why: name of a field, of a check, or of what they need, to what is missing.
        findings: of the checks themselves.
        stripped: what further formats are compared with; None without a task.
    """

    found: dict[str, Any]
    why: dict[str, str]
    findings: list[Finding] = field(default_factory=list)
    verdict: ModelVerdict = field(default_factory=ModelVerdict)
    stripped: Stripped | None = None


def certify_again(opened: OpenedClean, group: str | None) -> CertifiedAgain:
    """Certify the weights of a clean folder.

    Args:
        opened: the folder, beside its original if that is known; its models are opened.
        group: the group's name, if the user gave it.
    """
    clean, listed = opened.clean, {*opened.clean.certificate["files"], WEIGHTS_FILE}
    found: dict[str, Any] = {
        "certificate's own sha256": clean.digest,
        "files": {name: digest for name, digest in clean.hashes.items() if name in listed},
        "original checkpoint": None if opened.source is None else opened.source.sha256,
    }
    open_models(opened)
    again = CertifiedAgain(found, dict(opened.missing))
    if clean.damage:
        again.findings.append(compared("weights", [f"{WEIGHTS_FILE} does not open: {clean.damage}"]))
        return again
    found["recorded forms of the original"], found["recorded forms of the result"] = opened.forms, clean.forms
    found["tensors"] = {name: tensor_sha256(tensor) for name, tensor in clean.tensors.items()}
    found["recorded counts"] = {"tensors": len(clean.tensors)}
    again.findings += [_compare_forms(opened), *_impossible_values(opened.original, clean.tensors)]
    if opened.refusal:
        again.findings.append(compared("weights in the model", [opened.refusal]))
    if opened.workspace is not None:
        _certify_models(again, opened, opened.workspace, group)
    again.findings += [*_compare_changes(opened), *_compare_probes(again, opened)]
    left = _NEEDS.keys() - {finding.name for finding in again.findings}
    why = again.why
    again.findings += [
        unchecked(name, why.get(name) or what_is_missing(_NEEDS[name], why)) for name in _NEEDS if name in left
    ]
    return again


def _compare_forms(opened: OpenedClean) -> Finding:
    name, forms = "keys, shapes and dtypes as in the original", opened.clean.forms
    if opened.forms is None:
        return unchecked(name, GIVE_ORIGINAL)
    compare = Field("{0}: the original has {recorded}, the result {found}", same=lambda _, *both: same_form(*both))
    return compared(name, list(compare.differing(opened.forms, forms)), f"{len(forms)} tensors")


def _compare_changes(opened: OpenedClean) -> list[Finding]:
    """Compare the listed changes of the original with both files, and with what the task may change."""
    listed, workspace = opened.clean.adjustments, opened.workspace
    if listed is None:
        return []
    note = f"{len(listed.changes)} entries: {listed.what}"
    task = None if workspace is None else workspace.task
    others = [] if workspace is None or task is None else list(not_allowed(listed.changes, workspace.adjustable()))
    found = compared(ADJUSTED_CHECK, [*opened.unlisted, *others], note)
    needs = {"original": opened.original is not None, "task": task is not None}
    missing = [opened.missing.get(name, GIVE_TASK) for name, there in needs.items() if not there]
    return [found if found.differences or not missing else unchecked(ADJUSTED_CHECK, "; ".join(missing))]


def _compare_probes(again: CertifiedAgain, opened: OpenedClean) -> Iterator[Finding]:
    """Evaluate on other data again, as far as the user says where that is."""
    recorded, given = opened.clean.certificate["details"].get("probes") or {}, opened.options.probes
    unknown = [name for name in given if name not in recorded]
    if unknown:
        raise UsageError(
            f"expected probes that the certificate records ({', '.join(recorded) or 'none'}), got {unknown[0]!r}: "
            "leave it out, or strip again with it"
        )
    found: dict[str, Any] = {}
    if given and opened.workspace is not None:
        found = probed(opened.workspace, opened.models, next(iter(recorded.values()))["split"])
        again.verdict = again.verdict.joined(details=found)
    for name, record in recorded.items():
        if name in given and found:
            yield compare_probe(name, record, json_compatible(found["probes"][name]))
        else:
            missing = f"give --probe {name}=TASK" if name not in given else again.why.get("model", GIVE_TASK)
            yield unchecked(f"{OTHER_DATA}: {name}", missing)


def _impossible_values(original: Mapping[str, Tensor] | None, result: Mapping[str, Tensor]) -> Iterator[Finding]:
    for name, judge in _FROM_FILES.items():
        sentences = judge(original or {}, result)
        if original is None and sentences:
            bad = "; ".join(text.removesuffix(", unlike in the original") for text in sentences[:SHOWN])
            yield unchecked(name, f"{bad}, perhaps as in the original: {GIVE_ORIGINAL}")
        else:
            yield compared(name, sentences)


def _certify_models(again: CertifiedAgain, opened: OpenedClean, workspace: Workspace, given: str | None) -> None:
    """Certify the result against the original; add it to what was found."""
    details, models, found = opened.clean.certificate["details"], opened.models, again.found
    measured = details.get("measurement") or {}
    classes = classes_of(models["stripped"])
    again.why |= _built_by_others(opened, workspace, classes)
    if "model" in again.why:
        return
    found["recorded module classes"] = classes
    try:
        metrics = metrics_of(workspace, models, measured.get("split") or "test")
    except TaskError as error:
        again.why["metrics"], metrics = str(error), {}
    group = _group(again, workspace, details.get("group"), given)
    settings = MeasureSettings(**{key: measured[key] for key in ("elements", "batches", "seed") if measured})
    again.verdict = verdict = certify_opened(workspace, models, group, settings).joined(metrics=metrics)
    comparable = {*_FROM_MODEL, EQUIVARIANCE_CHECK, *(_FROM_TASK if workspace.task is not None else ())}
    again.findings += [finding for finding in verdict.findings if finding.name in comparable]
    data = json_compatible(verdict.certificate().to_data())
    found["metrics"], found["recorded equivariance"] = data["metrics"] or None, data["equivariance"] or None
    if workspace.task is None:
        return
    if "original" in models:
        found["recorded changes of buffers"] = stored_changes(verdict.buffers_written, opened.clean.tensors)
        _find_graphs(again, workspace, details, models["original"])
    if has_exports(opened.clean):  # without an original, a file is compared with what the result's own weights give
        result = models["stripped"]
        base, exact = models.get("original", result), workspace.double_or_own(result)
        again.stripped = Stripped(result, base, exact, workspace.task.task, group)


def _built_by_others(opened: OpenedClean, workspace: Workspace, classes: Mapping[str, str]) -> dict[str, str]:
    """Return why nothing is said of a network that was only recognised by its keys, if another class was certified."""
    recorded = opened.clean.certificate["architecture"]["classes"].get("")
    named = workspace.task is not None or opened.options.factory is not None or opened.options.build is not None
    if named or same_class((), str(recorded), classes[""]):
        return {}
    why = (
        f"class {recorded} was certified, while these keys are known as those of {classes['']}: {GIVE_TASK} or --model"
    )
    return {"model": why, "task": why}


def _find_graphs(again: CertifiedAgain, workspace: Workspace, recorded: Mapping[str, Any], original: nn.Module) -> None:
    """Say what was recorded of graphs, unless it was with other versions or data, which change them anyway."""
    made, details, found = recorded.get("versions", {}), again.verdict.details, again.found
    others = differing_versions(made, details["versions"])
    if others:
        note = f"recorded graphs depend on versions (made with {others}): only original and result were compared"
        again.why[HASHES_CHECK] = note
    elif "graph_sha256" in details:
        found[HASHES_CHECK] = dict(zip(("original", "result"), details["graph_sha256"], strict=True))
        found["recorded counts"] = {name: details[name] for name in COUNTS if name in details} | found[
            "recorded counts"
        ]
    again.why[CONSTANTS_CHECK] = "the graphs differ"
    known, now = recorded.get("relaxed_graph"), original_graph(original, workspace.require_task())
    again.why[SOURCE_CHECK] = "" if known is None else not_comparable(known, now)
    if not again.why[SOURCE_CHECK]:
        found[SOURCE_CHECK] = now["sha256"]


def _group(again: CertifiedAgain, workspace: Workspace, recorded: str | None, given: str | None) -> Group | None:
    """Return the group; one that is code is only imported if the user names it."""
    if workspace.task is None or not can_act(workspace.task.task):
        again.why["group"] = GIVE_TASK if workspace.task is None else f"{GIVE_TASK} with act and act_output"
        return None
    code = recorded is not None and ":" in recorded
    if given is None and (recorded is None or code):
        why = f"its code, {recorded}, is run" if code else "the certificate does not name it"
        again.why["group"] = f"give --group ({why})"
        return None
    try:
        named = None if recorded is None or code else parse_group(recorded)
    except GroupError as error:
        again.findings.append(compared("group", [f"the certificate names no group: {error}"]))
        again.why["group"] = "the certificate names no group"
        return None
    group = named if given is None else parse_group(given)
    if given is not None and recorded is not None:
        same = given == recorded if named is None else group is not None and group.name == named.name
        sentence = f"the group is {given} here, and {recorded} in the certificate"
        again.findings.append(compared("group", [] if same else [sentence]))
    return group
