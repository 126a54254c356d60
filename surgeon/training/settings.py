"""Settings of a fine-tuning, as plain data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from surgeon.algebra.penalty_settings import PenaltyForm, PenaltySettings
from surgeon.algebra.schedule import Schedule
from surgeon.errors import UsageError
from surgeon.support.plain import read_plain
from surgeon.training.weighting import PenaltyScale

OptimizerName = Literal["adamw", "adam", "sgd", "soap", "muon"]
Normalisation = Literal["entry", "block"]
Decay = Literal["cosine", "linear", "constant", "step"]
Precision = Literal["no", "bf16", "fp16"]

MATRIX_OPTIMIZERS = ("soap", "muon")
"""Those that treat weights as matrices."""

_LARGEST = sys.float_info.max

RECALIBRATION_BATCHES = 20
"""Training batches from which statistics are taken anew for clean evaluation."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How the branches take part in a training, whatever loop runs it.

    Attributes:
        branch_factor: learning rate of W as a multiple of the base's. Adam moves every entry by about the learning
            rate whatever its gradient, which fills W with noise; hence a smaller rate.
        penalty_weight: lambda of eq. 5; None for 0.01 where W is dropped, and 0 where its equivariant part is kept.
        penalty_scale: "relative" multiplies lambda by a running mean of the task loss, so that it carries over between
            tasks; "absolute" is the paper's.
        penalty_form: "gram", "rows" or "square", see ``surgeon.algebra.penalty``.
        schedule: theta(t).
        recalibrate: training batches, at most, from which the statistics of BatchNorm-like layers are taken anew for
            every clean evaluation; 0 leaves them as the relaxed forwards left them.

    Raises:
        UsageError: if a value is unusable.
    """

    branch_factor: float = 0.1
    penalty_weight: float | None = None
    penalty_scale: PenaltyScale = "relative"
    penalty_form: PenaltyForm = "gram"
    schedule: Schedule = field(default_factory=Schedule)
    recalibrate: int = RECALIBRATION_BATCHES

    def __post_init__(self) -> None:
        self._require_positive("branch_factor")
        self._require_not_negative("penalty_weight", "recalibrate")
        self._require_choice(penalty_scale=get_args(PenaltyScale), penalty_form=get_args(PenaltyForm))

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value <= _LARGEST:
                raise UsageError(f"expected a positive finite {name}, got {value}")

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _LARGEST:
                raise UsageError(f"expected a finite {name} of at least 0, got {value}")

    def _require_choice(self, **choices: tuple[str, ...]) -> None:
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"expected {name} among {', '.join(allowed)}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class FinetuneSettings(SessionSettings):
    """Everything that decides the outcome of a fine-tuning besides model, task and arm.

    Attributes:
        epochs: passes over the task's training batches.
        learning_rate: of the base weights; None for what the task prefers with this optimiser, or 1e-3.
        gauge_factor: the same for added weights that can only do what the base weights could do themselves: the second
            copy in the arm "overparam", the factors in the arm "lowrank".
        optimizer: "adamw", "adam" (decay as part of the gradient), "sgd" (momentum 0.9), or "soap" or "muon" on the
            matrices inside the weights with AdamW on all others, see ``surgeon.optim``. W of a branch is a matrix, too.
            None for what the task prefers, or "adamw".
        beta2: decay of the mean square of gradients, with "soap" of their covariances, too; None for the optimiser's
            own: 0.999 with "adamw" and "adam", 0.95 with "soap" and "muon".
        normalisation: how Adam scales the steps of W: "entry", each entry by itself, or "block", all entries from one
            irrep to another alike.
        weight_decay: of all weights.
        clip: largest gradient norm, of each group of weights by itself; None for no clipping.
        decay: of the learning rate: "cosine" or "linear" to 0, "constant", or "step".
        decay_factor: with "step" the rate is multiplied by it every ``decay_every`` epochs.
        decay_every: these epochs.
        warmup: optimiser steps in which the learning rate rises linearly; None for 10 with "soap" and "muon", 0 else.
        accumulate: batches of each process that make up one optimiser step.
        ema: decay per step of a running average of the weights, which is then evaluated and kept; None for none.
        replay: what the original's own outputs are a further target on: "perturb" for the training batches with noise,
            or a task on other inputs; None for nothing.
        replay_weight: of that target's loss beside the task's.
        replay_share: share of the training batches that are accompanied by it, up to 1.
        replay_noise: with "perturb", noise relative to the spread of each input; where the task has a ``perturbed`` of
            its own, in the units of its inputs (potentials: A).
        freeze_base: train the added weights alone.
        penalty_rows: rows of each forward that the penalty looks at; None for all.
        penalty_every: steps after which the penalty of a site is computed anew.
        adaptive_theta: halve theta whenever the relaxed model was worse on validation than the projected one at
            ``PATIENCE_THETA`` evaluations in a row.
        refold_every: steps between re-folds in the arm "refold".
        low_rank: rank of the arm "lowrank".
        dual_rate: of the multipliers in the arm "ace".
        evaluate_every: epochs between evaluations on the validation split; the last epoch is always evaluated.
        patience: evaluations without a better clean metric after which training ends; None for never.
        seed: of the order of the batches and of everything random in training.
        deterministic: refuse operations whose result differs from run to run.
        precision: "no" (the model's own dtype), "bf16" or "fp16" mixed precision through accelerate.
    """

    epochs: int = 10
    learning_rate: float | None = None
    gauge_factor: float = 0.1
    optimizer: OptimizerName | None = None
    beta2: float | None = None
    normalisation: Normalisation = "entry"
    weight_decay: float = 0.0
    clip: float | None = None
    decay: Decay = "cosine"
    decay_factor: float = 0.7
    decay_every: int = 20
    warmup: int | None = None
    accumulate: int = 1
    ema: float | None = None
    replay: str | None = None
    replay_weight: float = 1.0
    replay_share: float = 1.0
    replay_noise: float = 0.05
    freeze_base: bool = False
    penalty_rows: int | None = PenaltySettings.rows
    penalty_every: int = PenaltySettings.every
    adaptive_theta: bool = False
    refold_every: int = 50
    low_rank: int = 4
    dual_rate: float = 0.01
    evaluate_every: int = 1
    patience: int | None = None
    seed: int = 0
    deterministic: bool = False
    precision: Precision = "no"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"expected {name} of at least 1, got {value}")
        self._require_positive("replay_weight", "replay_share", "replay_noise")
        if self.replay_share > 1:
            raise UsageError(f"expected a replay_share of at most 1, got {self.replay_share}")
        self._require_positive("learning_rate", "gauge_factor", "clip", "decay_factor", "dual_rate")
        self._require_not_negative("weight_decay", "warmup")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"expected a decay between 0 and 1 for ema, got {self.ema}")
        if self.optimizer is not None:
            self._require_choice(optimizer=get_args(OptimizerName))
        self._require_choice(normalisation=get_args(Normalisation))
        self._require_choice(decay=get_args(Decay), precision=get_args(Precision))
        if self.beta2 is not None and not 0 <= self.beta2 < 1:
            raise UsageError(f"expected a beta2 from 0 to below 1, got {self.beta2}")
        if self.beta2 is not None and self.optimizer == "sgd":
            raise UsageError("expected no beta2 with the optimizer sgd, which has none: leave it out")

    @property
    def warmup_steps(self) -> int:
        """Steps of linear rise, with their default."""
        from surgeon.optim.adam import WARMUP  # here, so that settings need no torch

        return (WARMUP if self.optimizer in MATRIX_OPTIMIZERS else 0) if self.warmup is None else self.warmup

    @property
    def chosen_optimizer(self) -> OptimizerName:
        """The optimiser, with its default."""
        return self.optimizer or "adamw"

    @property
    def chosen_rate(self) -> float:
        """The learning rate of the base weights, with its default."""
        return 1e-3 if self.learning_rate is None else self.learning_rate

    def settled(self, preferred: Mapping[str, Any] = MappingProxyType({})) -> FinetuneSettings:
        """Return settings with an optimiser and a rate: as given, or as a task prefers them, or the defaults.

        Args:
            preferred: ``optimizer`` and settings that suit it, such as ``learning_rate`` and ``clip``. Where a rate is
                given without an optimiser it is one for AdamW, and nothing is taken from here.

        Raises:
            UsageError: if what is preferred is no usable setting.
        """
        named = self.optimizer or (preferred.get("optimizer") if self.learning_rate is None else None)
        taken = preferred if named is not None and named == preferred.get("optimizer") else {}
        try:
            found = dataclasses.replace(self, **{name: taken[name] for name in taken if getattr(self, name) is None})
        except (AttributeError, TypeError) as error:
            raise UsageError(
                f"expected settings of a training in the task's `preferred`, got {dict(preferred)}"
            ) from error
        return dataclasses.replace(found, optimizer=found.chosen_optimizer, learning_rate=found.chosen_rate)

    def to_data(self) -> dict[str, Any]:
        """Return the settings as JSON-compatible data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_data(cls, data: Any) -> FinetuneSettings:
        """Rebuild settings from :meth:`to_data`.

        Raises:
            UsageError: if a field is missing, unknown or unusable.
        """
        return read_plain(data, cls, "settings as FinetuneSettings.to_data writes them", UsageError)


_AT_LEAST_ONE = (
    *("epochs", "evaluate_every", "accumulate", "decay_every", "refold_every", "low_rank", "patience"),
    *("penalty_rows", "penalty_every"),
)

PATIENCE_THETA = 3
"""Evaluations in a row at which the relaxed model has to be the worse one before theta is halved."""

PRESETS: Mapping[str, FinetuneSettings] = MappingProxyType(
    {
        "default": FinetuneSettings(),
        "paper": FinetuneSettings(
            branch_factor=1.0,
            optimizer="adam",
            decay="constant",
            penalty_scale="absolute",
            penalty_form="rows",
            penalty_rows=None,
            penalty_every=1,
        ),
    }
)
"""Named starting points; "paper" is section 3 of the paper to the letter, with our exact-zero tail of theta."""
