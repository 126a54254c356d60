"""What changes during a run besides weights and optimiser, and the random state."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class TrainingState:
    """Everything that changes during a run, besides weights and optimiser; it is what a resume needs.

    Attributes:
        epoch: the epoch that is running, or the last one if none is; 0 before the first.
        epoch_step: optimiser steps done in the epoch that is running; 0 if none is.
        step: optimiser steps done.
        steps_per_epoch: optimiser steps of an epoch; 0 until it is known.
        losses: task losses of the running epoch, summed over its steps.
        penalties: the same for the penalty.
        best_epoch: epoch with the best clean validation metric; 0 is the model as it came.
        best_value: that metric.
        best_validation: all clean metrics at that epoch.
        best_theta: coefficients ``(perpendicular, parallel)`` of every branch at that epoch, which a fold needs.
        since_best: evaluations since then.
        worse: evaluations in a row at which the relaxed model was worse than the projected one.
        theta_scale: what adaptive theta has left of theta.
        duals: multipliers of the arm "ace".
        history: one record per finished epoch.
        steps: one record per ``LOG_EVERY`` steps.
        stopped: why training ended before its time; empty if it did not.
        seconds: training time so far, evaluation included.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    losses: float = 0.0
    penalties: float = 0.0
    best_epoch: int = 0
    best_value: float = math.nan
    best_validation: dict[str, float] = field(default_factory=dict)
    best_theta: dict[str, tuple[float, float]] = field(default_factory=dict)
    since_best: int = 0
    worse: int = 0
    theta_scale: float = 1.0
    duals: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    seconds: float = 0.0

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> TrainingState:
        """Rebuild a state from JSON, where NaN is null and tuples are lists.

        Raises:
            TypeError: if a field is missing or unknown.
        """
        missing = {item.name for item in fields(cls)} - data.keys()
        if missing:
            raise TypeError(f"missing {', '.join(sorted(missing))}")
        state = cls(**data)
        if state.best_value is None:
            state.best_value = math.nan
        state.best_theta = {key: (float(pair[0]), float(pair[1])) for key, pair in state.best_theta.items()}
        return state


def random_state() -> dict[str, Tensor]:
    """Return the state of every random generator that training can use, as tensors."""
    version, words, gauss = random.getstate()
    numbers = torch.tensor([version, *words], dtype=torch.int64)
    state = {"torch": torch.get_rng_state(), "python": numbers}
    if gauss is not None:
        state["python_gauss"] = torch.tensor(gauss, dtype=torch.float64)
    if "numpy" in sys.modules:
        import numpy

        _, key, position, has_gauss, cached = numpy.random.get_state()
        assert not isinstance(key, str)
        state["numpy"] = torch.tensor([*key.tolist(), position, has_gauss], dtype=torch.int64)
        state["numpy_gauss"] = torch.tensor(cached, dtype=torch.float64)
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Put all generators back to where :func:`random_state` found them.

    Raises:
        KeyError: if one is missing.
    """
    torch.set_rng_state(state["torch"])
    version, *words = state["python"].tolist()
    random.setstate((version, tuple(words), float(state["python_gauss"]) if "python_gauss" in state else None))
    if "numpy" in state:
        import numpy

        *key, position, has_gauss = state["numpy"].tolist()
        words_ = numpy.array(key, dtype=numpy.uint32)
        numpy.random.set_state(("MT19937", words_, position, has_gauss, float(state["numpy_gauss"])))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
