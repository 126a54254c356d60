"""``surgeon verify``: compute again what the certificate of a clean folder says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.errors import CheckFailedError
from surgeon.proof.verification.result import Verification
from surgeon.proof.verification.verify import verify_clean
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import Finding, JsonOption, OptionalGroupOption, shown
from surgeon_cli.screen import console, equivariance_table, print_json, say

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


@unbundled
def verify(
    path: CleanArgument,
    *,
    against: AgainstOption = None,
    finding: Finding,
    group: OptionalGroupOption = None,
    strict: StrictOption = False,
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
    verification = verify_clean(path, against, finding.options(json_output), group)
    if json_output:
        print_json(_data(path, against, verification))
    else:
        _show(verification)
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
        grade = verification.recorded["grade"]
        say("everything that was checked holds" + (f"; {left}" if left else "") + f"; the certificate says {grade!r}")


def _data(path: Path, against: Path | None, verification: Verification) -> dict[str, Any]:
    data = verification.to_data()
    recorded = {key: verification.recorded[key] for key in ("equivariance", "metrics")}
    return {"folder": shown(path), "against": None if against is None else shown(against), **data, "recorded": recorded}


def _show(verification: Verification) -> None:
    table = Table(title="verification", title_justify="left")
    for heading in ("what", "holds", "how, or what is missing"):
        table.add_column(heading)
    for entry in verification.findings:
        word = {"holds": "yes", "differs": "NO"}.get(entry.outcome, entry.outcome)
        table.add_row(entry.name, Text(word, style="bold red") if entry.outcome == "differs" else word, entry.note)
    out = console()
    out.print(table)
    recorded = verification.recorded
    if verification.equivariance:
        out.print(equivariance_table(_side_by_side(recorded["equivariance"], verification.equivariance)))
    for model, metrics in verification.metrics.items():
        before = recorded["metrics"].get(model, {})
        words = (f"{name} {value:.6g} (recorded {_number(before.get(name)):.6g})" for name, value in metrics.items())
        say(f"{model}: " + ", ".join(words))
    for note in verification.notes:
        say(f"note: {note}")
    for difference in verification.differences:
        say(f"difference: {difference}")


def _side_by_side(
    recorded: Mapping[str, Any], now: Mapping[str, Mapping[str, Mapping[str, ErrorSummary]]]
) -> dict[str, dict[str, dict[str, ErrorSummary]]]:
    """Return recorded and present errors in turn, for one table."""
    rows: dict[str, dict[str, dict[str, ErrorSummary]]] = {}
    for model, dtypes in now.items():
        rows[f"{model}, recorded"] = {
            dtype: {name: _summary(error) for name, error in parts.items()}
            for dtype, parts in recorded.get(model, {}).items()
        }
        rows[f"{model}, now"] = {dtype: dict(parts) for dtype, parts in dtypes.items()}
    return rows


def _number(value: float | None) -> float:
    """JSON has null for a number that is not finite."""
    return math.nan if value is None else value


def _summary(error: Mapping[str, Any]) -> ErrorSummary:
    mean, median, maximum = (_number(error[key]) for key in ("mean", "median", "maximum"))
    return ErrorSummary(mean, median, maximum, error["count"], error["worst"])
