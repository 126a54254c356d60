"""One run of a comparison: what is asked for, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.plan import SiteRecord
from surgeon.support.plain import Measured


@dataclass(frozen=True)
class Point:
    """One run that a comparison asks for: plain data, which can go to another process.

    Attributes:
        seed: seed of the run; equal seeds see equal batches in equal order.
        learning_rate: of the base weights.
        test: measure the stripped model on the test split; False in a sweep.
    """

    arm: str
    seed: int
    learning_rate: float
    test: bool = True

    @property
    def key(self) -> str:
        """Name of the run, equal for equal points only."""
        kind = "run" if self.test else "sweep"
        return f"{kind}-{self.arm}-lr{float(self.learning_rate)!r}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}, lr {self.learning_rate:g}"


@dataclass(frozen=True)
class ArmRun:
    """One finished run of a comparison, measured on the stripped model.

    Attributes:
        arm, seed, learning_rate: as in :class:`Point`.
        validation: clean metrics of the best epoch.
        test: metrics of the stripped model on the test split; empty in a sweep.
        best_epoch: epoch of the best clean validation metric; 0 is the model as it came.
        sites: what was dropped or folded.
        certificate: its grade, or "different" from the original architecture; None if nobody looked.
        equivariance: largest equivariance error of the stripped model; None if it was not measured.
        curve: optimiser step and clean validation metric of every evaluation, that before training first; empty if it
            was not recorded.
    """

    arm: str
    seed: int
    learning_rate: float
    validation: Mapping[str, Measured]
    test: Mapping[str, Measured]
    best_epoch: int
    steps: int
    seconds: float
    sites: tuple[SiteRecord, ...]
    certificate: str | None = None
    equivariance: float | None = None
    curve: tuple[tuple[int, Measured], ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run whose training could not go on, such as one that diverged; in a sweep that is an answer."""

    message: str


Outcome = ArmRun | Failure


Execute = Callable[[Sequence[Point]], Iterable[tuple[Point, Outcome]]]
"""Carries runs out and hands back each one as soon as it is finished, in any order."""
