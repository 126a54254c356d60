"""What the user asks of the branches: budget, scores, rank, blocks, shares of theta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from surgeon.editing.budget import best_scored, with_blocks, with_rank, within_budget
from surgeon.errors import UsageError
from surgeon.files.content import read_json
from surgeon.plan import Plan


@dataclass(frozen=True)
class Narrowing:
    """Which of the ops that were found get a branch, and of what form."""

    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="W = B A of this rank, where that has fewer parameters.")
    ] = None
    blocks: Annotated[
        str | None,
        typer.Option("--blocks", metavar="L>L,...", help="Restrict W to these blocks, from degree l to degree l."),
    ] = None
    max_extra: Annotated[
        str | None,
        typer.Option("--max-extra-params", metavar="N|P%", help="Relax as many ops as fit into this budget."),
    ] = None
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="FILE", help="Record of `surgeon diagnose`: its shares rank the ops."),
    ] = None
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Relax so many ops, those with the highest scores.")
    ] = None


def narrowed(plan: Plan, narrowing: Narrowing, own_parameters: int) -> Plan:
    """Return the plan with the forms and the sites that the user wants; forms first, because they decide the costs.

    Raises:
        UsageError: if an option cannot be read or needs another one.
        PlanError: if nothing would remain.
    """
    if narrowing.rank is not None and narrowing.blocks is not None:
        raise UsageError("expected either --rank or --blocks, got both: leave one out")
    if narrowing.rank is not None:
        plan = with_rank(plan, narrowing.rank)
    if narrowing.blocks is not None:
        plan = with_blocks(plan, _blocks(narrowing.blocks))
    scores = None if narrowing.scores is None else _scores(narrowing.scores)
    if narrowing.top is not None:
        if scores is None:
            raise UsageError("expected --scores FILE together with --top: `surgeon diagnose -o FILE` writes one")
        plan = best_scored(plan, scores, narrowing.top)
    if narrowing.max_extra is not None:
        plan = within_budget(plan, _budget(narrowing.max_extra, own_parameters), scores)
    elif scores is not None and narrowing.top is None:
        raise UsageError("expected --top or --max-extra-params together with --scores: add one")
    return plan


def _blocks(text: str) -> list[tuple[int, int]]:
    try:
        pairs = [part.split(">") for part in text.split(",") if part.strip()]
        blocks = [(int(l_in), int(l_out)) for l_in, l_out in pairs]
    except ValueError:
        blocks = []
    if not blocks or min(min(block) for block in blocks) < 0:
        raise UsageError(f"expected blocks such as 0>1,1>2 after --blocks, got {text!r}")
    return blocks


def _budget(text: str, own_parameters: int) -> int:
    try:
        share = text.strip().endswith("%")
        number = float(text.strip().removesuffix("%").replace(",", ""))
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise UsageError(f"expected a number, or a share such as 30%, after --max-extra-params, got {text!r}")
    return int(number / 100 * own_parameters if share else number)


def _scores(path: Path) -> Mapping[str, float]:
    data = read_json(path)
    try:
        return {str(key): float(value) for key, value in data["curvature"]["shares"].items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"expected the record of `surgeon diagnose` in {str(path)!r}, but it has no shares of sites: "
            "write one with `surgeon diagnose -o FILE`"
        ) from error


def theta_shares(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Read ``PATTERN=SHARE``.

    Raises:
        UsageError: if one has another form.
    """
    found = []
    for text in texts:
        pattern, equals, share = text.rpartition("=")
        try:
            found.append((pattern, float(share)))
        except ValueError:
            equals = ""
        if not equals or not pattern:
            raise UsageError(f"expected PATTERN=SHARE, such as 'layers.0.*=0.5', after --theta-site, got {text!r}")
    return tuple(found)
