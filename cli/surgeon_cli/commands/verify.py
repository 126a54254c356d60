"""``surgeon verify``: compute again what the certificate of a clean folder says."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

import surgeon
from surgeon.errors import CheckFailedError
from surgeon.support.stages import silent
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import (
    FindOptions,
    JsonOption,
    OptionalGroupOption,
    ProbeOption,
    VerboseOption,
    shown,
    with_probes,
)
from surgeon_cli.screen import ERROR_TITLE, print_json, print_table, say

if TYPE_CHECKING:
    from surgeon.proof.verdict import Finding, Verification

CleanArgument = Annotated[
    Path, typer.Argument(metavar="CLEAN", help="Folder written by `surgeon strip`, or hf:// path.")
]
AgainstOption = Annotated[
    Path | None,
    typer.Option("--against", metavar="ORIGINAL", help="The checkpoint that was relaxed, before everything."),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit code 1 also if something was not checked, or is not recorded.")
]

_OUTCOMES = {
    "holds": "hold",
    "differs": "differ",
    "recorded": "are only recorded",
}


@unbundled
def verify(
    path: CleanArgument,
    *,
    against: AgainstOption = None,
    finding: FindOptions,
    probe: ProbeOption = None,
    group: OptionalGroupOption = None,
    strict: StrictOption = False,
    verbose: VerboseOption = False,
    json_output: JsonOption = False,
) -> None:
    """Compare a clean folder with its certificate and its original, and compute again what follows from the two.

    Without the original, what needs none is checked. With a task, all is measured, whatever the certificate lists.
    Exit code 0 if everything that was checked holds, 1 if anything differs. Finds damage, not deliberate forgery.

    Examples:

        surgeon verify segnn-clean --against segnn.safetensors

        surgeon verify clean --against model.pt --task task.py --strict --json

        surgeon verify segnn-clean
    """
    options = with_probes(finding.options(json_output), probe)
    verification = surgeon.verify_clean(path, against, options, group, silent if json_output else say)
    if json_output:
        print_json(_data(path, against, verification))
    else:
        original = against or PurePath(verification.recorded["details"]["original"]["file"]).name
        everything = ["surgeon", "verify", str(path), "--against", str(original), "--task", options.task or "FILE"]
        _show(verification, verbose or not verification.holds, shlex.join(everything))
    if not verification.holds:
        count = len(verification.differences)
        said = "its certificate says" if against is None else f"its certificate and {shown(against)!r} say"
        raise CheckFailedError(
            f"{shown(path)!r} is not what {said}, {count} difference{'' if count == 1 else 's'}: do not use it, strip "
            "again"
        )
    parts = (f"{n} {word}" for word in ("not checked", "not recorded") if (n := verification.count(word)))
    left = ", ".join(parts)
    if strict and not verification.complete:
        raise CheckFailedError(f"everything that was checked holds, but {left}: give what is missing, or no `--strict`")
    if not json_output:
        at_a_glance, _, _ = verification.signing.partition(": ")
        say(f"note: {verification.signing if verbose else f'{at_a_glance} (--verbose says how)'}")
        grade = verification.recorded["grade"]
        say("everything that was checked holds" + (f"; {left}" if left else "") + f"; the certificate says {grade!r}")


def _data(path: Path, against: Path | None, verification: Verification) -> dict[str, Any]:
    data = verification.to_data()
    recorded = {key: verification.recorded[key] for key in ("equivariance", "metrics")}
    return {"folder": shown(path), "against": None if against is None else shown(against), **data, "recorded": recorded}


def _show(verification: Verification, verbose: bool, whole: str) -> None:
    from surgeon.proof.words import ERRORS, PROBED, error_rows, error_words, probe_rows

    told = {"holds": "yes", "differs": "NO"}
    left = [] if verbose else [entry for entry in verification.findings if _is_for_want_of_files(entry)]
    rows = [
        (entry.name, told.get(entry.outcome, entry.outcome), entry.note)
        for entry in verification.findings
        if verbose or (entry.outcome in ("differs", "not checked", "not recorded") and entry not in left)
    ]
    print_table("verification", [("what", "holds", "how, or what is missing"), *rows])
    if left:
        say(f"not looked at, which `{whole}` does: {', '.join(entry.name for entry in left)}")
    counts = Counter(entry.outcome for entry in verification.findings)
    say("findings: " + ", ".join(f"{count} {_OUTCOMES.get(outcome, outcome)}" for outcome, count in counts.items()))
    recorded, now = verification.recorded, verification.to_data()["equivariance"]
    records = (("recorded", recorded["equivariance"]), ("now", now))
    both = {f"{model}, {when}": record.get(model, {}) for model in now for when, record in records}
    if verbose:
        print_table(ERROR_TITLE, [ERRORS, *error_rows(both)])
    for text in error_words({"equivariance": now}):
        say(text)
    figures = [
        (model, name, _told(recorded["metrics"].get(model, {}).get(name)), f"{value:.6g}")
        for model, metrics in verification.metrics.items()
        for name, value in metrics.items()
    ]
    print_table("metrics", [("model", "metric", "recorded", "now"), *figures])
    probes = verification.details.get("probes", {})
    print_table("on other data, now", [PROBED, *probe_rows({name: each["metrics"] for name, each in probes.items()})])
    for note in verification.notes:
        say(f"note: {note}")
    for difference in verification.differences:
        say(f"difference: {difference}")


def _is_for_want_of_files(entry: Finding) -> bool:
    missing = entry.note.split("; ") if entry.outcome == "not checked" else [""]
    return all(each.startswith(("give --against", "give --task")) for each in missing)


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
