"""Verify a clean folder: certify its weights again, and compare the two records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.files.clean import WORDS_FILE, CleanFiles
from surgeon.opening.clean import open_clean
from surgeon.opening.options import OpenOptions
from surgeon.plan import EQUIVARIANCE_CHECK, GRAPH_CHECK, grade_of
from surgeon.proof.architecture import CONSTANTS_CHECK, FORM_CHECKS
from surgeon.proof.attestation import compare_attestation, signing_words
from surgeon.proof.certify_again import RECOMPUTED, certify_again
from surgeon.proof.equivariance import less_equivariant
from surgeon.proof.exports import export_findings
from surgeon.proof.records import compare_fields, fields_of
from surgeon.proof.verdict import Finding, Verification, compared, unchecked, unrecorded
from surgeon.proof.words import certificate_text
from surgeon.support.imports import one_line
from surgeon.support.memory import large_ones_apart
from surgeon.support.stages import Announce, silent, timed
from surgeon.support.versions import package_versions

ONLY_RECORDED = {
    "strip_mode": "way of stripping",
    "sites": "norm, folded and lost part of every branch",
    "branches": "what was in each W",
    "pairs": "sample of computed values and labels",
    "projection_error": "projection error",
    "theta": "theta",
    "arm": "arm that trained it",
    "judging": "metric that decided, and units",
    "recalibration": "recalibration of normalisation layers",
    "flipped rows": "rows that rounding flipped",
    "no float64": "why nothing was run in float64",
    "attributes_written": "attributes that a forward writes",
    "source": "what was found of the network's source when stripping",
}
"""Figures of the relaxed model, and of stripping it: they do not follow from a clean folder."""


@large_ones_apart()
def verify_clean(
    folder: str | Path,
    against: str | Path | None = None,
    options: OpenOptions | None = None,
    group: str | None = None,
    announce: Announce = silent,
) -> Verification:
    """Compare a clean folder with its certificate and with the original checkpoint; nothing is written.

    What is checked does not depend on what the certificate lists: with a task, everything is measured in any case.

    Args:
        folder: what ``surgeon strip`` or ``surgeon export`` wrote, here or on the Hub.
        against: the checkpoint that was relaxed, here or on the Hub; without it, what needs none is checked.
        options: how to open it, and how to find model and task; without them only the files are compared.
        group: the group, if the certificate does not name it or its code has to be run.
        announce: told how long each stage took.

    Returns:
        All findings; it is the caller's to refuse a verification that does not hold.

    Raises:
        CheckFailedError: if the certificate is missing or damaged beyond reading.
        SurgeonError: one of its subclasses, if folder, original, model or task cannot be used at all.
    """
    options = options or OpenOptions()
    with timed("reading", announce):
        opened = open_clean(folder, against, options)
    clean, recorded = opened.clean, opened.clean.certificate
    with timed("certifying again", announce):
        again = certify_again(opened, group)
    with timed("comparing further formats", announce):
        formats = export_findings(clean, opened.workspace, again.stripped, options.trust_pickle)
    split = (recorded["details"].get("measurement") or {}).get("split")
    findings = [
        *compare_fields(fields_of(recorded), again.found, again.why, against=str(against), split=split),
        _conclusions(recorded),
        _words(clean),
        compare_attestation(recorded, clean.path),
        *_unlisted(recorded),
        *again.findings,
        *formats,
        *_only_recorded(recorded),
    ]
    added = sorted(clean.hashes.keys() - recorded["files"].keys())
    notes = tuple(f"the certificate does not know the file {name}" for name in added)
    figures = {name: getattr(again.verdict, name) for name in ("buffers_written", "equivariance", "metrics", "details")}
    return Verification(tuple(findings), **figures, recorded=recorded, notes=notes, signing=signing_words(clean.path))


def _conclusions(recorded: Mapping[str, Any]) -> Finding:
    """Compare what the certificate concludes with what follows from its checks and figures."""
    checks = recorded["checks"]
    failed = [name for name, holds in checks.items() if not holds]
    sentences = [f"the certificate itself says that the check {name!r} does not hold" for name in failed]
    sentences += [f"the certificate itself lists the difference: {text}" for text in recorded["differences"]]
    said, grade = (recorded["grade"] if recorded["passed"] else None), grade_of(checks)
    if said != grade:
        sentences.append(
            f"the certificate says {said or 'different'!r}, and from its checks follows {grade or 'different'!r}"
        )
    elif grade is None:
        sentences.append("the certificate itself says that the architecture is not the original's")
    errors = recorded["equivariance"]
    exact = {name: {"float64": _largest(errors.get(name, {}).get("float64", {}))} for name in ("original", "stripped")}
    same_parts = exact["original"]["float64"].keys() == exact["stripped"]["float64"].keys()
    if checks.get(EQUIVARIANCE_CHECK) and same_parts:
        sentences += [f"from the recorded errors follows: {text}" for text in less_equivariant(exact)]
    return compared("recorded verdict and checks", sentences)


def _largest(recorded: Mapping[str, Any]) -> dict[str, ErrorSummary]:
    """Return the largest errors by component; JSON has null for one that is not finite."""
    values = {part: math.nan if error["maximum"] is None else error["maximum"] for part, error in recorded.items()}
    return {part: ErrorSummary(value, value, value, recorded[part]["count"]) for part, value in values.items()}


def _words(clean: CleanFiles) -> Finding:
    """Write the certificate's words once more: a figure that was changed in one of its two files alone is found."""
    recorded, name = clean.certificate, f"{WORDS_FILE} says what certificate.json says"
    made, here = recorded["details"].get("versions", {}).get("equisurgeon"), package_versions(["equisurgeon"])
    if made != here.get("equisurgeon"):
        return unchecked(name, f"the words are those of equisurgeon {made}, here is {here.get('equisurgeon')}")
    path = clean.path / WORDS_FILE
    if not path.is_file():
        return unchecked(name, "it is missing")
    files = {name: digest for name, digest in recorded["files"].items() if name != WORDS_FILE}
    try:
        expected = certificate_text({**recorded, "files": files}).splitlines()
    except (KeyError, TypeError, ValueError) as error:
        return compared(name, [f"certificate.json is malformed ({one_line(error)})"])
    found = path.read_text(encoding="utf-8", errors="replace").splitlines()
    other = [(left, right) for left, right in zip_longest(expected, found, fillvalue="nothing") if left != right]
    return compared(name, [f"{WORDS_FILE}: expected {left!r}, found {right!r}" for left, right in other[:1]])


def _unlisted(recorded: Mapping[str, Any]) -> list[Finding]:
    """Name the checks that every certificate makes and this one does not list."""
    expected = [*FORM_CHECKS, *([CONSTANTS_CHECK] if GRAPH_CHECK in recorded["checks"] else [])]
    note = "the certificate does not list this check"
    return [unrecorded(f"recorded check: {name}", note) for name in expected if name not in recorded["checks"]]


def _only_recorded(recorded: Mapping[str, Any]) -> list[Finding]:
    """Name the figures that nobody can compute from a clean folder."""
    everything = {**recorded, **recorded["details"]}
    names = [name for name in recorded["checks"] if name not in RECOMPUTED]
    names += [words for key, words in ONLY_RECORDED.items() if everything.get(key)]
    models = [model for model in recorded["equivariance"] if model not in ("original", "stripped")]
    names += [f"equivariance of the model {model}" for model in models]
    return [Finding(name, "recorded", "does not follow from the two checkpoints") for name in names]
