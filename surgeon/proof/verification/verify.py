"""Verify a clean folder: compute again what its certificate says, from the folder, the original, and the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from surgeon.errors import ModelNotFoundError, TrustError
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.remote.fetch import fetch_model, open_anywhere
from surgeon.opening.workspace import Workspace
from surgeon.plan import EQUIVARIANCE_CHECK, GRAPH_CHECK
from surgeon.proof.certificate import CONSTANTS_CHECK, FINITE_CHECK, FORM_CHECKS, named_as
from surgeon.proof.verification.formats import GIVE_TASK, Clean, format_findings
from surgeon.proof.verification.reading import Recorded, read_certificate
from surgeon.proof.verification.rebuilt import RECOMPUTED, SOURCE_CHECK, Rebuilt, check_models
from surgeon.proof.verification.result import Finding, Verification, unchecked, unrecorded
from surgeon.proof.verification.stored import (
    GIVE_ORIGINAL,
    SAME_FORM,
    WEIGHTS,
    check_certificate,
    check_files,
    check_finite,
    check_finite_alone,
    check_same_form,
    check_source,
    check_tensors,
    read_result,
)

__all__ = ["Finding", "Verification", "verify_clean"]

GIVE_MODEL = f"{GIVE_TASK} or --model"

_RECORDED = {
    "sites": "norm, folded and lost part of every branch",
    "projection_error": "projection error",
    "theta": "theta",
    "recalibration": "recalibration of normalisation layers",
}
"""Figures of the relaxed model: they do not follow from a clean folder."""


def verify_clean(
    folder: str | Path, against: str | Path | None = None, options: OpenOptions | None = None, group: str | None = None
) -> Verification:
    """Compare a clean folder with its certificate and with the original checkpoint; nothing is written.

    What is checked does not depend on what the certificate lists: with a task, everything is measured in any case.

    Args:
        folder: what ``surgeon strip`` or ``surgeon export`` wrote, here or on the Hub.
        against: the checkpoint that was relaxed, here or on the Hub; without it, what needs none is checked.
        options: how to open it, and how to find model and task; without them only the files are compared.
        group: the group, if the certificate does not name it or its code has to be run.

    Returns:
        All findings; it is the caller's to refuse a verification that does not hold.

    Raises:
        CheckFailedError: if the certificate is missing or damaged beyond reading.
        SurgeonError: one of its subclasses, if folder, original, model or task cannot be used at all.
    """
    folder, options = fetch_model(folder), options or OpenOptions()
    recorded = read_certificate(folder)
    original = None
    if against is not None:
        options = dataclasses.replace(options, entry=options.entry or recorded.original["entry"])
        original = open_anywhere(Path(against), trust_pickle=options.trust_pickle, entry=options.entry)
    files, added = check_files(folder, recorded)
    notes = tuple(f"the certificate does not know the file {name}" for name in added)
    findings = [*check_certificate(recorded), *_unlisted(recorded), files]
    findings.append(
        unchecked("original checkpoint", GIVE_ORIGINAL) if original is None else check_source(original, recorded)
    )
    result, opened = read_result(folder)
    if not result:
        left = unchecked("everything about the weights", "they do not open")
        return Verification((*findings, opened, left), recorded=recorded.data, notes=notes)
    tensors = None if original is None else named_as(original, result)
    form = unchecked(SAME_FORM, GIVE_ORIGINAL) if original is None else check_same_form(original, result)
    findings += [form, *check_tensors(tensors, result, recorded)]
    rebuilt, clean = Rebuilt(), Clean(folder, result, recorded, options.trust_pickle)
    if form.outcome == "differs":
        findings.append(unchecked("classes, graphs, equivariance and metrics", "the architectures differ"))
    else:
        workspace, why = _workspace(folder / WEIGHTS if against is None else Path(against), options)
        if workspace is None:
            findings += [*_without_model(why, alone=original is None), *format_findings(clean, None, None)]
        else:
            rebuilt = check_models(workspace, clean, group, alone=original is None)
    if tensors is None:
        findings.append(check_finite_alone(result))
    elif not any(finding.name == FINITE_CHECK for finding in rebuilt.findings):  # with the model, a check of its own
        findings.append(check_finite(tensors, result))
    findings += [*rebuilt.findings, *_only_recorded(recorded)]
    return Verification(tuple(findings), rebuilt.equivariance, rebuilt.metrics, recorded.data, notes)


def _unlisted(recorded: Recorded) -> list[Finding]:
    """Name the checks that every certificate makes and this one does not list."""
    expected = [*FORM_CHECKS, *([CONSTANTS_CHECK] if GRAPH_CHECK in recorded.checks else [])]
    note = "the certificate does not list this check"
    return [unrecorded(f"recorded check: {name}", note) for name in expected if name not in recorded.checks]


def _workspace(against: Path, options: OpenOptions) -> tuple[Workspace | None, str]:
    """Open the original with its model; without one, say what is missing."""
    try:
        return open_path(against, options), ""
    except ModelNotFoundError:
        return None, GIVE_MODEL
    except TrustError:
        code = "the checkpoint names a factory, or a task file lies beside it, that nobody has allowed here"
        return None, f"{code}: give --task, --model, --trust-task or --trust-remote-code"


def _without_model(why: str, alone: bool) -> list[Finding]:
    """List what needs the model, what needs the task as well, and what needs both and the original."""
    task = GIVE_TASK if why == GIVE_MODEL else why
    both = f"{GIVE_ORIGINAL}; {task}" if alone else task
    names = ("buffers", GRAPH_CHECK, CONSTANTS_CHECK, SOURCE_CHECK, EQUIVARIANCE_CHECK)
    return [unchecked("module classes", why), *(unchecked(name, both) for name in names), unchecked("metrics", task)]


def _only_recorded(recorded: Recorded) -> list[Finding]:
    """Name the figures that nobody can compute from a clean folder."""
    note = "does not follow from the two checkpoints"
    found = [Finding(name, "recorded", note) for name in recorded.checks if name not in RECOMPUTED]
    everything = {**recorded.data, **recorded.data["details"]}
    found += [Finding(words, "recorded", note) for key, words in _RECORDED.items() if everything.get(key)]
    models = [model for model in recorded.equivariance if model not in ("original", "stripped")]
    return found + [Finding(f"equivariance of the model {model}", "recorded", note) for model in models]
