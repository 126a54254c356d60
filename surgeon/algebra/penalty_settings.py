"""How the penalty is computed, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from surgeon.errors import UsageError

PenaltyForm = Literal["gram", "rows", "square"]


@dataclass(frozen=True)
class PenaltySettings:
    """How the penalty is computed; ``rows=None, every=1`` is exact.

    Attributes:
        form: "gram" takes the root of the mean square over rows, "rows" the paper's mean of norms, "square" the mean
            square without a root.
        rows: rows of each forward that are looked at, spread evenly and others at every step; None for all.
        every: steps after which the penalty of a site is computed anew; its gradient is used until then. The sites take
            turns.

    Raises:
        UsageError: if the form is unknown or a number is not positive.
    """

    form: PenaltyForm = "gram"
    rows: int | None = 128
    every: int = 4

    def __post_init__(self) -> None:
        if self.form not in get_args(PenaltyForm):
            raise UsageError(f"expected a penalty form among {', '.join(get_args(PenaltyForm))}, got {self.form!r}")
        if self.every < 1 or (self.rows is not None and self.rows < 1):
            raise UsageError(
                f"expected the penalty to look at 1 row or more every 1 step or more, got {self.rows} rows every "
                f"{self.every} steps: leave rows out for all of them"
            )
