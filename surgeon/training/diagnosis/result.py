"""What a diagnosis says: curvatures, slopes, verdicts, and the words for them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from surgeon.errors import UsageError
from surgeon.plan import Plan
from surgeon.support.versions import provenance
from surgeon.training.diagnosis.curvature import Method
from surgeon.training.diagnosis.lanczos import FEWEST
from surgeon.training.statistics import Estimate

Verdict = Literal["real", "noise", "none", "undecided"]

MOVEMENT = 0.01
"""Movement of the ops' outputs to which curvatures and slopes refer: 1 %."""

MOVEMENTS = (1e-3, MOVEMENT, 1e-1)
"""Movements at which the loss along the direction is really computed."""

NEGLIGIBLE = 1e-5
"""A curvature above -NEGLIGIBLE counts as not negative: outputs moved by 1 % lower the loss by less than 0.001 %."""


@dataclass(frozen=True)
class DiagnosisSettings:
    """How much is computed.

    Attributes:
        products: Hessian-vector products at most, each over all training batches.
        train_batches: batches on which the direction is sought; all there are, if fewer.
        held_out_batches: validation batches on which it is judged.
        per_site: also seek a direction for every site alone.
        seed: of the order of the training batches and of the first direction.
        seconds: about how long it may take, ops alone apart; fewer batches, products and movements are used if it would
            take longer. None for as long as it takes.
        movements: of the ops' outputs at which the loss along the direction is really computed.

    Raises:
        UsageError: if a number is too small.
    """

    products: int = 30
    train_batches: int = 8
    held_out_batches: int = 32
    per_site: bool = False
    seed: int = 0
    seconds: float | None = None
    movements: tuple[float, ...] = MOVEMENTS

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"expected more than 0 seconds for a diagnosis, got {self.seconds}: give more")
        if self.products < FEWEST or min(self.train_batches, self.held_out_batches) < 1:
            raise UsageError(
                f"expected at least {FEWEST} products and 1 batch of each split, got {self.products} products, "
                f"{self.train_batches} training and {self.held_out_batches} held-out batches: give more"
            )


@dataclass(frozen=True)
class Step:
    """What the loss really does at some distance in both senses of the direction, ``(L(t) + L(-t)) / 2 - L(0)``.

    Attributes:
        movement: of the ops' outputs, dimensionless.
        train: relative change of the loss, dimensionless.
        held_out: the same on validation batches.
    """

    movement: float
    train: float
    held_out: float


@dataclass(frozen=True)
class Curvature:
    """The most favourable direction that was found, and how the loss bends along it.

    All curvatures are ``(0.01 / m)^2 v^T H v / (2 |L|)``, dimensionless: the second-order change of the loss, relative
    to the loss L of the same split, by a branch in this direction that moves the ops' outputs by 1 %. The direction v
    has norm 1 and moves them by m.

    Attributes:
        train: on the batches on which the direction was sought: the smallest Ritz value.
        residual: of the eigenvalue, in the same unit.
        converged: whether it is small.
        largest: the largest Ritz value, in the same unit.
        products: Hessian-vector products used.
        held_out: on validation batches.
        movement: m, relative change of the ops' outputs by a direction of norm 1.
        shares: of every site in the direction's squared norm; they sum up to 1.
        steps: what the loss really does along the direction, which tells how far the second order holds.
    """

    train: float
    residual: float
    converged: bool
    largest: float
    products: int
    held_out: Estimate
    movement: float
    shares: Mapping[str, float]
    steps: tuple[Step, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Whether the loss really bends down.

        "real": on training batches and, with its whole 95 % interval, on held-out ones. "noise": on training batches,
        but the held-out mean is not negative and its interval excludes the training value. "none": not even on training
        batches, within the residual. "undecided": the search has not converged, or the interval is too wide.
        """
        if self.train >= -NEGLIGIBLE:
            return "none" if self.train - self.residual >= -NEGLIGIBLE else "undecided"
        if self.held_out.high < 0:
            return "real"
        return "noise" if self.held_out.mean >= 0 and self.held_out.low > self.train else "undecided"


@dataclass(frozen=True)
class Slope:
    """First-order change of the loss against the transverse gradient of the training batches.

    Both numbers are ``0.01 g v / (m |L|)``, dimensionless: the first-order change of the loss, relative to the loss of
    the same split, by a branch along ``v = -g_train / |g_train|`` that moves the ops' outputs by 1 %.

    Attributes:
        train: never positive.
        held_out: 0 in expectation if data and loss have the symmetry.
    """

    train: float
    held_out: Estimate

    @property
    def real(self) -> bool:
        """Whether the slope is negative on held-out batches with its whole 95 % interval."""
        return self.held_out.high < 0


@dataclass(frozen=True)
class Diagnosis:
    """What a model's loss does near W = 0 in the directions that break the symmetry.

    Attributes:
        plan: which ops were looked at.
        model: name of its class.
        curvature: over all sites together.
        slope: over all sites together.
        per_site: for each site alone, if it was asked for.
        losses: mean loss of the batches, by split.
        method: how products with the Hessian were computed.
        parameters: entries of all W.
        settings: what was asked for.
        seconds: all of it took.
        notes: what the user should know.
        path: what was opened; empty for a model in memory.
    """

    plan: Plan
    model: str
    curvature: Curvature
    slope: Slope
    losses: Mapping[str, float]
    method: Method
    parameters: int
    settings: DiagnosisSettings
    seconds: float
    per_site: Mapping[str, Curvature] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: str = ""

    @property
    def verdict(self) -> Verdict:
        """That of the curvature over all sites."""
        return self.curvature.verdict

    def to_data(self) -> dict[str, Any]:
        """Return everything as JSON-compatible data, with verdicts and sentences."""
        data = dataclasses.asdict(dataclasses.replace(self, plan=None))  # type: ignore[arg-type]
        del data["plan"]
        per_site = {key: {**data["per_site"][key], "verdict": self.per_site[key].verdict} for key in self.per_site}
        slope = {**data["slope"], "real": self.slope.real}
        said = {"verdict": self.verdict, "sentences": self.sentences(), "group": self.plan.group}
        return {
            **said,
            **data,
            "slope": slope,
            "per_site": per_site,
            "sites": self.plan.to_data()["sites"],
            **provenance(),
        }

    def sentences(self) -> list[str]:
        """Say in words what was found, and no more than that."""
        curvature, said = self.curvature, [_words(self.curvature)]
        if not curvature.converged:
            said.append(
                f"The eigenvalue has not converged after {curvature.products} products (residual "
                f"{curvature.residual:.2g}): there may be a more favourable direction; more products look further."
            )
        actual = next((step for step in curvature.steps if step.movement == MOVEMENT), None)
        if actual is not None and abs(actual.train - curvature.train) > max(abs(curvature.train), NEGLIGIBLE) / 2:
            said.append(
                f"The second order holds for smaller movements only: at {100 * MOVEMENT:g} % the loss changes by "
                f"{100 * actual.train:+.2g} % on training and {100 * actual.held_out:+.2g} % on held-out batches."
            )
        if self.slope.real:
            said.append(
                "The gradient in these directions is real: training and held-out batches agree on it beyond noise "
                f"({_percent(self.slope.held_out)} to first order). Data or loss break the symmetry, and the relaxed "
                "model can use that; dropping the branches loses it again."
            )
        else:
            said.append(
                f"The gradient in these directions is not distinguishable from 0 on held-out batches "
                f"({_percent(self.slope.held_out)} to first order), as it is for data and a loss with the symmetry."
            )
        return said


def _words(curvature: Curvature) -> str:
    train, held_out = f"{100 * curvature.train:+.2g} %", _percent(curvature.held_out)
    match curvature.verdict:
        case "real":
            return (
                f"Relaxation opens a direction that lowers the loss, on held-out batches too ({held_out}, training "
                f"batches {train}): the branches can be expected to change something. Whether that is more than the "
                "base weights reach by themselves, only a comparison with plain fine-tuning tells."
            )
        case "noise":
            return (
                f"The most favourable direction lowers the loss of the training batches ({train}), not that of "
                f"held-out batches ({held_out}): what a branch would learn first is noise of the training batches."
            )
        case "none":
            return (
                f"No direction lowers the loss ({train} on training batches at best): the weights are at a minimum in "
                "the directions that break the symmetry, too, and no change is to be expected from second order."
            )
        case _ if curvature.train >= -NEGLIGIBLE:
            return (
                f"Undecided: no direction that lowers the loss was found ({train}), but the search has not converged."
            )
        case _ if math.isnan(curvature.held_out.half_width):
            return (
                f"Undecided: training batches {train}, a single held-out batch {held_out}; it has no interval, "
                "more or smaller validation batches have."
            )
        case _:
            return (
                f"Undecided: the direction lowers the loss of the training batches ({train}), and the interval of the "
                f"held-out batches ({held_out}) is too wide to tell; more of these narrow it."
            )


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.half_width):
        return f"{100 * estimate.mean:+.2g} %"
    return f"{100 * estimate.mean:+.2g} ± {100 * estimate.half_width:.2g} %"
