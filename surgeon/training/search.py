"""What a search tries, and what it has found: plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from surgeon.errors import UsageError
from surgeon.training.arms import WITHOUT_BRANCHES, Contender, require_single
from surgeon.training.settings import FinetuneSettings

MULTIPLES = (1 / 3, 1.0, 3.0)
"""Of an optimiser's usual learning rate; one more is tried beyond an edge."""

BESIDE_ADAMW = MappingProxyType({"soap": 3.0, "muon": 3.0})
"""Usual learning rate of an optimiser, AdamW's = 1: what the sweeps of docs/accuracy.md chose for potentials."""

Setting = tuple[str, float]
"""Arm and learning rate."""


@dataclass(frozen=True)
class AutoSettings:
    """What is tried, and how much of it.

    Attributes:
        training: what all runs share.
        arms: such as ``plain@soap``, as :class:`surgeon.training.arms.Contender` reads them; None for ordinary
            fine-tuning by AdamW with two decays, SOAP and Muon, and in a relaxed folder its own arm as well.
        rates: learning rates, the same for every arm; None for a third, one and three times the usual one of each
            optimiser, which is measured by that of the training, or of what the task prefers.
        budget: of all runs together, the whole trainings of the best two included: a float counts whole trainings, an
            int optimiser steps.

    Raises:
        UsageError: if an arm is unknown or a value unusable.
    """

    training: FinetuneSettings = field(default_factory=FinetuneSettings)
    arms: Sequence[str] | None = None
    rates: Sequence[float] | None = None
    budget: int | float = 10.0

    def __post_init__(self) -> None:
        for name in self.arms or ():
            require_single(Contender.parse(name).arm)
            Contender.parse(name).settings(self.training)
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise UsageError(f"expected a positive budget, got {self.budget}")
        if self.training.patience is not None:
            raise UsageError("expected no --patience in a search, whose runs are compared at equal steps: leave it out")

    def shared(self, preferred: Mapping[str, Any]) -> FinetuneSettings:
        """Return what all runs share: that of the default without branches, so that no arm lacks what another has.

        Args:
            preferred: by the task.
        """
        settled = self.training.settled(preferred)
        return dataclasses.replace(settled, warmup=settled.warmup_steps or settled.warmup)

    def tried(self, relaxed_mode: str | None, shared: FinetuneSettings) -> list[Setting]:
        """Return every setting; if no arms are named, the default without branches is among them.

        Args:
            relaxed_mode: strip mode of the relaxed folder that is trained; None for a checkpoint.
            shared: from :meth:`shared`.
        """
        own = () if relaxed_mode is None else (f"{relaxed_mode}@adamw", f"{relaxed_mode}@soap")
        arms = self.arms or (*WITHOUT_BRANCHES, *own)
        found = [(arm, rate) for arm in arms for rate in self.rates or _usual_rates(arm, shared)]
        first = [] if self.arms else [(f"plain@{shared.chosen_optimizer}", shared.chosen_rate)]
        return list(dict.fromkeys([*first, *found]))


def _usual_rates(arm: str, shared: FinetuneSettings) -> list[float]:
    own, theirs = Contender.parse(arm).settings(shared).chosen_optimizer, shared.chosen_optimizer
    usual = shared.chosen_rate * BESIDE_ADAMW.get(own, 1.0) / BESIDE_ADAMW.get(theirs, 1.0)
    return [float(f"{usual * each:.3g}") for each in MULTIPLES]


@dataclass(frozen=True)
class SearchRecord:
    """What a search has found, as ``search.json`` keeps it.

    Attributes:
        metric: of the validation split, by which settings were compared.
        rows: every setting: ``arm``, ``learning_rate``, ``epochs`` and ``steps`` that it was trained for, ``value`` of
            the metric then (its best since training began; NaN if it diverged), ``outcome`` in a word, ``message``.
        rounds: epoch at which each round ended to the number of settings that went on.
        kept: index of the row that is trained to the end whatever it reaches before, the default; None for none.
        steps: optimiser steps of all runs together.
        steps_of_all: those that training every setting to the end would have taken.
        seconds: of all runs together, opening included; without what a killed process had begun.
        seconds_of_all: what training every setting to the end would have taken at their paces.
        identity: what the search was of.
    """

    metric: str
    rows: Sequence[Mapping[str, Any]]
    rounds: Mapping[str, int]
    kept: int | None
    steps: int
    steps_of_all: int
    seconds: float
    seconds_of_all: float
    identity: Mapping[str, Any]

    @property
    def best(self) -> Mapping[str, Any]:
        """The setting that is best when it is trained to the end."""
        return next(row for row in self.rows if row["outcome"] == "best")

    def sentences(self) -> list[str]:
        """Say in words what was chosen and what that cost."""
        best, kept = self.best, None if self.kept is None else self.rows[self.kept]
        said = f"chosen: {best['arm']} at learning rate {best['learning_rate']:g}, of {len(self.rows)} settings"
        if kept is best:
            said += ", the default without branches"
        elif kept is not None:
            said += (
                f"; {self.metric} {best['value']:.5g}, and {kept['value']:.5g} by {kept['arm']} at "
                f"{kept['learning_rate']:g}, the default without branches"
            )
        cost = (
            f"all runs together took {self.steps} steps in {self.seconds:.1f} s; every setting to the end would have "
            f"taken {self.steps_of_all} steps, about {self.seconds_of_all:.0f} s"
        )
        return [said, cost, *self._edge()]

    def _edge(self) -> list[str]:
        best = self.best
        rates = sorted({row["learning_rate"] for row in self.rows if row["arm"] == best["arm"]})
        if len(rates) < 2 or best["learning_rate"] not in (rates[0], rates[-1]):
            return []
        side = "smaller" if best["learning_rate"] == rates[0] else "larger"
        return [
            f"warning: no {side} learning rate was tried with {best['arm']}, so a better one may lie beyond: widen "
            "--lr-grid"
        ]
