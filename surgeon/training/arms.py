"""The variants of the method that a comparison sets side by side, and optimisers of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from surgeon.errors import TrainingError, UsageError
from surgeon.training.settings import FinetuneSettings

if TYPE_CHECKING:
    from torch import nn

    from surgeon.editing.relaxation import Relaxation
    from surgeon.editing.weight_updates import WeightUpdates
    from surgeon.plan import Plan, StripMode


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        name: as given to ``--compare``.
        summary: what it does, in words.
        mode: how its branches are stripped; None if it has none.
        penalty_weight: lambda unless the user gives another; the folded variants keep P(W) on purpose, and a penalty
            on |Wx| would pull it to 0.
        refolds: the foldable part of W moves into the base weights every so many steps, without changing the function.
        learns_theta: theta of every site is trained, with a multiplier that pulls it to 0.
        low_rank: weights get an equivariant low-rank update, merged at the end.
        doubles: weights get a second copy that is added to them, merged at the end.
        bumps_rate: the learning rate of the base is multiplied by (1 + theta).
        starts: trainings with seeds of their own that begin, of which one goes on; more than 1 in comparisons only.
    """

    name: str
    summary: str
    mode: StripMode | None
    penalty_weight: float
    refolds: bool = False
    learns_theta: bool = False
    low_rank: bool = False
    doubles: bool = False
    bumps_rate: bool = False
    starts: int = 1

    @property
    def updates(self) -> bool:
        """Whether weights get an update that only does what they could do themselves."""
        return self.low_rank or self.doubles


_ALL = (
    Arm("plain", "no branches: ordinary fine-tuning", None, 0.0),
    Arm("drop", "the paper's method if W is dense: theta 0 -> 1 -> 0, branches dropped", "drop", 0.01),
    Arm("fold", "split theta: the equivariant part of W stays and is folded into the base weights", "fold", 0.0),
    Arm("refold", "the equivariant part of W moves into the base weights as it grows", "drop", 0.0, refolds=True),
    Arm("overparam", "a second copy of the ops' own weights, added to them and merged", None, 0.0, doubles=True),
    Arm("lowrank", "an equivariant low-rank update of the base weights, merged", None, 0.0, low_rank=True),
    Arm("lrbump", "control: plain with the learning rate times (1 + theta)", None, 0.0, bumps_rate=True),
    Arm("restarts", "control: plain with two seeds, of which the better one goes on", None, 0.0, starts=2),
    Arm("ace", "theta of every site is learned, by primal-dual updates", "drop", 0.0, learns_theta=True),
)

ARMS: Mapping[str, Arm] = MappingProxyType({arm.name: arm for arm in _ALL})

WITHOUT_BRANCHES = ("plain@adamw", "plain@adamw+beta2=0.95", "plain@soap", "plain@muon")
"""What a search tries by default; of a relaxed folder its own arm, too, with AdamW and SOAP."""


def arm_named(name: str) -> Arm:
    """Look an arm up.

    Raises:
        UsageError: if there is none of this name; the message lists them.
    """
    if name not in ARMS:
        raise UsageError(f"expected an arm among {', '.join(ARMS)}, got {name!r}: write {CONTENDER}")
    return ARMS[name]


def require_single(arm: Arm) -> None:
    """Refuse an arm of several trainings where one is wanted.

    Raises:
        UsageError: if it is one.
    """
    if arm.starts > 1:
        raise UsageError(
            f"expected an arm of one training, got {arm.name!r}, which only takes part in comparisons: use --compare"
        )


def updates_of(arm: Arm, model: nn.Module, plan: Plan, settings: FinetuneSettings) -> WeightUpdates:
    """Put the updates of an arm into a network; errors as in :class:`WeightUpdates`."""
    from surgeon.editing.weight_updates import WeightUpdates  # here, so that the names of arms need no torch

    return WeightUpdates(model, plan, settings.low_rank if arm.low_rank else None, settings.seed)


_NUMBERS = ("beta2", "clip", "ema", "weight_decay", "branch_factor", "penalty_weight")
OWN_SETTINGS: Mapping[str, type] = MappingProxyType({**dict.fromkeys(_NUMBERS, float), "warmup": int})
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


def require_trainable(arm: Arm, added: Relaxation | WeightUpdates | None, freeze_base: bool) -> None:
    """Refuse what an arm cannot train.

    Raises:
        TrainingError: if it is not what the arm adds to the network.
        UsageError: if nothing of it would remain beside a frozen base, or W is re-folded and is not dense.
    """
    from surgeon.editing.relaxation import Relaxation
    from surgeon.editing.weight_updates import WeightUpdates

    if isinstance(added, Relaxation) != (arm.mode is not None) or isinstance(added, WeightUpdates) != arm.updates:
        raise TrainingError(f"expected what the arm {arm.name!r} adds to the network, got {type(added).__name__}")
    if freeze_base and (added is None or arm.mode == "drop" and not arm.refolds):
        raise UsageError(
            f"expected an arm that keeps what it adds when the base is frozen, got {arm.name!r}: nothing would "
            "remain, choose fold, refold, overparam or lowrank"
        )
    if isinstance(added, Relaxation):
        require_fitting_plan(arm, added.plan)


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
