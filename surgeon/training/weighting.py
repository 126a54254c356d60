"""The weight lambda of the penalty (eq. 5), absolute or carried over between tasks by the size of their loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from surgeon.errors import UsageError

PenaltyScale = Literal["relative", "absolute"]

LOSS_MEMORY = 0.98
"""Decay per step of the running mean of the task loss that scales lambda."""


@dataclass
class PenaltyWeight:
    """What the penalty is multiplied with at every step.

    The paper's lambda = 0.01 is not portable: where the loss itself is about 0.01 it switches the branch off.
    "relative" multiplies lambda by a running mean of the task loss (bias-corrected, decay 0.98 per step); "absolute"
    is the paper's.

    Attributes:
        value: lambda, dimensionless if relative, else in units of the loss.
        scale: "relative" or "absolute".
        loss_sum: decayed sum behind the running mean.
        loss_weight: decayed sum of weights behind it.

    Raises:
        UsageError: if lambda is negative or not finite, or the scale unknown.

    Example:
        >>> weight = PenaltyWeight(0.01)
        >>> round(weight(2.0), 6)  # the first loss is the mean
        0.02
    """

    value: float
    scale: PenaltyScale = "relative"
    loss_sum: float = 0.0
    loss_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (self.value >= 0 and math.isfinite(self.value)):
            raise UsageError(f"expected a finite weight of the penalty of at least 0, got {self.value}")
        if self.scale not in get_args(PenaltyScale):
            raise UsageError(f"expected a penalty scale among {', '.join(get_args(PenaltyScale))}, got {self.scale!r}")

    def __call__(self, loss: float) -> float:
        """Take up the task loss of a step (a finite number) and return the factor of the penalty at this step."""
        if self.scale == "absolute":
            return self.value
        self.loss_sum = LOSS_MEMORY * self.loss_sum + (1 - LOSS_MEMORY) * abs(loss)
        self.loss_weight = LOSS_MEMORY * self.loss_weight + (1 - LOSS_MEMORY)
        return self.value * self.loss_sum / self.loss_weight

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {"loss_sum": self.loss_sum, "loss_weight": self.loss_weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.loss_sum, self.loss_weight = float(state["loss_sum"]), float(state["loss_weight"])
