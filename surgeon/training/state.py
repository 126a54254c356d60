"""What changes during a run besides weights and optimiser, and the random state."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surgeon.support.plain import Measured, parse_json
from surgeon.training.progress import StepEvent


@dataclass(frozen=True)
class FinetuneResult:
    """Outcome of a fine-tuning; the model holds the weights of the best epoch, branches still in place."""

    best_epoch: int
    validation: Mapping[str, float]
    thetas: Mapping[str, tuple[float, float]] = field(repr=False)
    history: tuple[Mapping[str, Any], ...] = field(repr=False)
    seconds: float
    steps: int
    stopped: str = ""


class Evaluation(NamedTuple):
    """What one evaluation found.

    Attributes:
        clean: metrics of what stripping would give.
        current: metrics at the present theta.
        use: of the branches at the present theta, see :class:`surgeon.editing.use.SiteUse`; None if not looked at.
    """

    clean: dict[str, float]
    current: dict[str, float]
    use: Mapping[str, list[float | None]] | None


@dataclass
class TrainingState:
    """Everything that changes during a run, besides weights and optimiser; it is what a resume needs.

    Attributes:
        epoch: the epoch that is running, or the last one if none is; 0 before the first.
        epoch_step: optimiser steps done in the epoch that is running; 0 if none is.
        steps_per_epoch: optimiser steps of an epoch; 0 until it is known.
        losses: task losses of the running epoch, summed over its steps.
        penalties: the same for the penalty.
        replays: distances from the original's outputs in the running epoch, summed over replayed batches.
        replayed: number of these batches.
        best_epoch: epoch with the best clean validation metric; 0 is the model as it came.
        best_value: that metric.
        best_validation: all clean metrics at that epoch.
        best_theta: coefficients ``(perpendicular, parallel)`` of every branch at that epoch, which a fold needs.
        since_best: evaluations since then.
        worse: evaluations in a row at which the relaxed model was worse than the projected one.
        theta_scale: what adaptive theta has left of theta.
        duals: multipliers of the arm "ace".
        steps: one record per ``LOG_EVERY`` steps.
        probes: by the names of the probes, metrics of "original" and, once training has ended, "stripped".
        stopped: why training ended before its time; empty if it did not.
        seconds: training time so far, evaluation included.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    losses: Measured = 0.0
    penalties: Measured = 0.0
    replays: Measured = 0.0
    replayed: int = 0
    best_epoch: int = 0
    best_value: Measured = math.nan
    best_validation: dict[str, Measured] = field(default_factory=dict)
    best_theta: dict[str, tuple[float, float]] = field(default_factory=dict)
    since_best: int = 0
    worse: int = 0
    theta_scale: float = 1.0
    duals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    probes: dict[str, dict[str, dict[str, Measured]]] = field(default_factory=dict)
    stopped: str = ""
    seconds: float = 0.0

    def ended(self, epochs: int) -> bool:
        """Tell whether a training of so many epochs is over."""
        return bool(self.stopped) or (self.epoch >= epochs and not self.epoch_step)

    def event(self, steps: int, theta: float | None, loss: float, penalty: float) -> StepEvent:
        """Tell of the step that was just taken, of so many; ``theta`` is None for an arm without branches."""
        last: Mapping[str, Any] = next((entry for entry in reversed(self.history) if entry["validation"]), {})
        clean, relaxed = last.get("validation", {}), last.get("validation_relaxed", {})
        told = (None, loss, None, clean, {}) if theta is None else (theta, loss, penalty, clean, relaxed)
        return StepEvent(self.step, steps, self.epoch, *told)

    def close_epoch(
        self,
        theta: tuple[float, float],
        found: Evaluation | None,
        replays: bool,
    ) -> None:
        """Append the epoch to the history, with what its evaluation found if there was one."""
        count = self.epoch_step
        entry = {
            "epoch": self.epoch,
            "step": self.step,
            "theta": theta,
            "loss": self.losses / count if count else None,
            "penalty": self.penalties / count if count else None,
            **({"replay": self.replays / self.replayed if self.replayed else None} if replays else {}),
            "validation": found.clean if found else None,
            "validation_relaxed": found.current if found else None,
            **({"use": found.use} if found and found.use else {}),
            "seconds": self.seconds,
        }
        self.history.append(entry)
        self.epoch_step = 0

    def result(self) -> FinetuneResult:
        """Return what the run has come to."""
        return FinetuneResult(
            self.best_epoch,
            self.best_validation,
            self.best_theta,
            tuple(self.history),
            self.seconds,
            self.step,
            self.stopped,
        )


def random_state() -> dict[str, Tensor]:
    """Return the state of every random generator that training can use, as tensors."""
    state = {"torch": torch.get_rng_state(), "python": _packed(random.getstate())}
    if "numpy" in sys.modules:
        import numpy

        kind, key, *rest = numpy.random.get_state()
        state["numpy"] = _packed([kind, [int(word) for word in key], *rest])
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put all generators back to where :func:`random_state` found them.

    Raises:
        KeyError, ValueError: if one is missing or damaged.
    """
    torch.set_rng_state(state["torch"])
    version, words, gauss = _unpacked(state["python"])
    random.setstate((version, tuple(words), gauss))
    if "numpy" in state:
        import numpy

        numpy.random.set_state(tuple(_unpacked(state["numpy"])))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Put all generators back, when the context closes, to where they were when it was opened."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def _packed(value: Any) -> Tensor:
    """Return plain data as the bytes of its JSON, which safetensors can hold."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Any:
    return parse_json(bytes(packed.tolist()))
