"""What the user asks of the branches: form, budget, shares of theta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from surgeon.errors import UsageError


@dataclass(frozen=True)
class Narrowing:
    """Which of the ops that were found get a branch, and of what form."""

    dense: Annotated[
        bool, typer.Option("--dense", help="Every W dense, as in the paper, however many parameters that adds.")
    ] = False
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help="W = B A of this rank, where that has fewer parameters.")
    ] = None
    blocks: Annotated[
        str | None,
        typer.Option("--blocks", metavar="L>L,...", help="Restrict W to these blocks, from degree l to degree l."),
    ] = None
    max_extra: Annotated[
        str | None,
        typer.Option(
            "--max-extra-params",
            metavar="N|P%",
            help="Most parameters of all branches; default as many as the model has.",
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Return the engine's settings of these.

        Raises:
            UsageError: if an option cannot be read.
        """
        blocks = None if self.blocks is None else _blocks(self.blocks)
        budget = None if self.max_extra is None else _budget(self.max_extra)
        return {"dense": self.dense, "rank": self.rank, "blocks": blocks, "budget": budget}


def _blocks(text: str) -> list[tuple[int, int]]:
    try:
        pairs = [part.split(">") for part in text.split(",") if part.strip()]
        blocks = [(int(l_in), int(l_out)) for l_in, l_out in pairs]
    except ValueError:
        blocks = []
    if not blocks or min(min(block) for block in blocks) < 0:
        raise UsageError(f"expected blocks such as 0>1,1>2 after --blocks, got {text!r}")
    return blocks


def _budget(text: str) -> int | float:
    try:
        share = text.strip().endswith("%")
        number = float(text.strip().removesuffix("%").replace(",", ""))
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise UsageError(f"expected a number, or a share such as 30%, after --max-extra-params, got {text!r}")
    return number / 100 if share else int(number)


def read_theta_shares(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
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
