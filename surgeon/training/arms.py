"""The variants of the method that a comparison sets side by side, and optimisers of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from surgeon.errors import UsageError
from surgeon.plan import Plan, StripMode
from surgeon.training.settings import FinetuneSettings


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        name: as given to ``--compare``.
        summary: what it does, in words.
        mode: how its branches are stripped; None if it has none.
        relaxes: False if the non-equivariant part of W never acts (theta_perp stays 0).
        penalty_weight: lambda unless the user gives another; the folded variants keep P(W) on purpose, and a penalty
            on |Wx| would pull it to 0.
        refolds: the foldable part of W moves into the base weights every so many steps, without changing the function.
        learns_theta: theta of every site is trained, with a multiplier that pulls it to 0.
        low_rank: the base weights get an equivariant low-rank update, merged at the end.
        bumps_rate: the learning rate of the base is multiplied by (1 + theta).
    """

    name: str
    summary: str
    mode: StripMode | None
    relaxes: bool
    penalty_weight: float
    refolds: bool = False
    learns_theta: bool = False
    low_rank: bool = False
    bumps_rate: bool = False


_ALL = (
    Arm("plain", "no branches: ordinary fine-tuning", None, False, 0.0),
    Arm("drop", "the paper's method if W is dense: theta 0 -> 1 -> 0, branches dropped", "drop", True, 0.01),
    Arm("fold", "split theta: the equivariant part of W stays and is folded into the base weights", "fold", True, 0.0),
    Arm("refold", "the equivariant part of W moves into the base weights as it grows", "drop", True, 0.0, refolds=True),
    Arm("overparam", "only the equivariant part of W acts; folded at the end", "fold", False, 0.0),
    Arm("lowrank", "an equivariant low-rank update of the base weights, merged", None, False, 0.0, low_rank=True),
    Arm("lrbump", "control: plain with the learning rate times (1 + theta)", None, False, 0.0, bumps_rate=True),
    Arm("ace", "theta of every site is learned, by primal-dual updates", "drop", True, 0.0, learns_theta=True),
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


OWN_SETTINGS: Mapping[str, type] = MappingProxyType(
    {"beta2": float, "clip": float, "ema": float, "weight_decay": float, "warmup": int}
)
"""What a contender may have of its own besides its optimiser."""

CONTENDER = "ARM[@OPTIMIZER[+NAME=VALUE ...]]"


@dataclass(frozen=True)
class Contender:
    """An arm in a comparison, with settings of its own: ``plain``, ``drop@soap``, ``plain@adamw+beta2=0.95``.

    Attributes:
        name: as given, which is also the name of the folder of its weights.
        arm: how the branches take part.
        own: settings in which it differs from what all share.
    """

    name: str
    arm: Arm
    own: Mapping[str, Any]

    @classmethod
    def parse(cls, name: str) -> Contender:
        """Read ``ARM[@OPTIMIZER[+NAME=VALUE ...]]``.

        Raises:
            UsageError: if the arm or a setting is unknown, or a value is no number.

        Example:
            >>> dict(Contender.parse("plain@adamw+beta2=0.95").own)
            {'optimizer': 'adamw', 'beta2': 0.95}
        """
        arm, at, rest = name.partition("@")
        optimizer, *parts = rest.split("+")
        own: dict[str, Any] = {"optimizer": optimizer} if at else {}
        for part in parts:
            setting, _, value = part.partition("=")
            if setting not in OWN_SETTINGS:
                raise UsageError(
                    f"expected a setting among {', '.join(OWN_SETTINGS)} in the arm {name!r}, got {setting!r}: "
                    f"write {CONTENDER}"
                )
            try:
                own[setting] = OWN_SETTINGS[setting](value)
            except ValueError as error:
                raise UsageError(f"expected a number for {setting} in the arm {name!r}, got {value!r}") from error
        return cls(name, arm_named(arm), MappingProxyType(own))

    def settings(self, shared: FinetuneSettings) -> FinetuneSettings:
        """Return what it trains with.

        Raises:
            UsageError: if its settings are unusable.
        """
        try:
            return dataclasses.replace(shared, **self.own)
        except UsageError as error:
            raise UsageError(f"in the arm {self.name!r}: {error}") from error


def reference_of(names: Sequence[str]) -> str | None:
    """Return the arm with which others are compared: the first one that is plain; None if there is none."""
    return next((name for name in names if Contender.parse(name).arm is ARMS["plain"]), None)


def require_fitting_plan(arm: Arm, plan: Plan) -> None:
    """Refuse branches that an arm cannot train.

    Raises:
        UsageError: if W is re-folded, which would leave one of another rank, and is not dense.
    """
    low = next((site for site in plan.sites if site.rank is not None), None)
    if arm.refolds and low is not None:
        raise UsageError(
            f"expected dense branches for the arm {arm.name!r}, got one of rank {low.rank} at {low.key!r}: make them "
            "anew with `surgeon relax --dense`"
        )
