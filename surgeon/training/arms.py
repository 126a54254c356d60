"""The variants of the method that a comparison sets side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from surgeon.errors import UsageError
from surgeon.surgery import Relaxation
from surgeon.types import StripMode


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        name: as given to ``--compare``.
        summary: what it does, in words.
        mode: how its branches are stripped; None if it has none.
        relaxes: False if only the equivariant part of W ever acts (theta_perp stays 0).
        penalty_weight: lambda unless the user gives another; the folded variants keep P(W) on purpose, and a penalty
            on |Wx| would pull it to 0.
    """

    name: str
    summary: str
    mode: StripMode | None
    relaxes: bool
    penalty_weight: float

    def set_progress(self, relaxation: Relaxation, progress: float) -> None:
        """Set the coefficients of the branches for a share ``progress`` in [0, 1] of the training."""
        if self.relaxes:
            relaxation.set_progress(progress)
        else:
            relaxation.set_theta(0.0, relaxation.schedule.parallel(progress))


_ALL = (
    Arm("plain", "no branches: ordinary fine-tuning", None, False, 0.0),
    Arm("drop", "the paper's method: theta 0 -> 1 -> 0, branches dropped", "drop", True, 0.01),
    Arm("fold", "split theta: the equivariant part of W stays and is folded into the base weights", "fold", True, 0.0),
    Arm("overparam", "only the equivariant part of W acts; folded at the end", "fold", False, 0.0),
)

ARMS: Mapping[str, Arm] = MappingProxyType({arm.name: arm for arm in _ALL})


def arm_named(name: str) -> Arm:
    """Look an arm up.

    Raises:
        UsageError: if there is none of this name; the message lists them.
    """
    if name not in ARMS:
        raise UsageError(f"expected an arm among {', '.join(ARMS)}, got {name!r}")
    return ARMS[name]
