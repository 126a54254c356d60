"""Settings of a fine-tuning, as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from surgeon.errors import UsageError
from surgeon.schedule import Schedule
from surgeon.surgery import PenaltyForm


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides the outcome of a fine-tuning besides model, task and arm.

    Attributes:
        epochs: passes over the task's training batches.
        learning_rate: of the base weights, for AdamW.
        branch_factor: learning rate of W as a multiple of the base's. Adam moves every entry by about the learning
            rate whatever its gradient, which fills W with noise; hence a smaller rate.
        weight_decay: AdamW's decoupled decay, of all weights.
        clip: largest gradient norm; None for no clipping.
        decay: "cosine" to 0 over the training, or "constant".
        penalty_weight: lambda of eq. 5; None takes the arm's own.
        penalty_scale: "relative" multiplies lambda by a running mean of the task loss, so that it carries over between
            tasks; "absolute" is the paper's.
        penalty_form: "gram" or "rows", see ``surgeon.regularizer``.
        schedule: theta(t).
        evaluate_every: epochs between evaluations on the validation split; the last epoch is always evaluated.
        seed: of the order of the batches and of everything random in training.
        precision: "no" (the model's own dtype), "bf16" or "fp16" mixed precision through accelerate.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    branch_factor: float = 0.1
    weight_decay: float = 0.0
    clip: float | None = None
    decay: Literal["cosine", "constant"] = "cosine"
    penalty_weight: float | None = None
    penalty_scale: Literal["relative", "absolute"] = "relative"
    penalty_form: PenaltyForm = "gram"
    schedule: Schedule = field(default_factory=Schedule)
    evaluate_every: int = 1
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UsageError(f"expected at least 1 epoch, got {self.epochs}")
        if self.evaluate_every < 1:
            raise UsageError(f"expected at least 1 epoch between evaluations, got {self.evaluate_every}")
        for name in ("learning_rate", "branch_factor", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"expected a positive finite {name}, got {value}")
        for name in ("weight_decay", "penalty_weight"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"expected a finite {name} of at least 0, got {value}")
        choices: dict[str, tuple[str, ...]] = {
            "decay": ("cosine", "constant"),
            "penalty_scale": ("relative", "absolute"),
            "penalty_form": ("gram", "rows"),
            "precision": ("no", "bf16", "fp16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"expected {name} among {', '.join(allowed)}, got {getattr(self, name)!r}")

    def to_data(self) -> dict[str, Any]:
        """Return the settings as JSON-compatible data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> FinetuneSettings:
        """Rebuild settings from :meth:`to_data`."""
        return cls(**{**data, "schedule": Schedule(**data["schedule"])})


PRESETS: Mapping[str, FinetuneSettings] = MappingProxyType(
    {
        "default": FinetuneSettings(),
        "paper": FinetuneSettings(
            branch_factor=1.0,
            decay="constant",
            penalty_scale="absolute",
            penalty_form="rows",
        ),
    }
)
"""Named starting points; "paper" is section 3 of the paper to the letter, with our exact-zero tail of theta."""
