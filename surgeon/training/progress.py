"""What a training tells while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgeon.training.outcomes import Outcome, Point


@dataclass(frozen=True)
class StepEvent:
    """What a progress display needs after one optimiser step.

    Attributes:
        theta, penalty: of the branches; None for an arm without.
        validation: the last metrics of what stripping would give; empty before the first.
        validation_relaxed: the same at the theta of then; empty for an arm without branches.
    """

    step: int
    steps: int
    epoch: int
    theta: float | None
    loss: float
    penalty: float | None
    validation: Mapping[str, float]
    validation_relaxed: Mapping[str, float]


class Progress:
    """Told how a training or a comparison goes on; a subclass shows of it what it wants, and this class nothing."""

    def say(self, sentence: str) -> None:
        """Take up what is found or done before the training begins."""

    def begin(self, title: str, metric: str, runs: int = 0) -> None:
        """Take up what is carried out from now on, judged by a metric: so many runs of a comparison, or a training."""

    def start(self, point: Point) -> None:
        """Take up that a run of a comparison begins in this process."""

    def step(self, event: StepEvent) -> None:
        """Take up an optimiser step in this process."""

    def stage(self, ended: str) -> None:
        """Take up what of a run has ended in this process, with the seconds that it took."""

    def finish(self, point: Point, outcome: Outcome) -> None:
        """Take up that a run of a comparison has ended, in whatever process."""
