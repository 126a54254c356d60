"""The options of ``surgeon finetune``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from surgeon.errors import UsageError
from surgeon.training import ARMS, PRESETS, FinetuneSettings

TRAINING = "Training"
COMPARISON = "Comparison"


@dataclass(frozen=True)
class Training:
    """How to train."""

    preset: Annotated[
        Literal["default", "paper"],
        typer.Option("--preset", help="Starting point for all settings.", rich_help_panel=TRAINING),
    ] = "default"
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, rich_help_panel=TRAINING)] = None
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate of the base weights.", rich_help_panel=TRAINING)
    ] = None
    branch_factor: Annotated[
        float | None,
        typer.Option("--branch-factor", help="Learning rate of W as a multiple of --lr.", rich_help_panel=TRAINING),
    ] = None
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", rich_help_panel=TRAINING)] = None
    clip: Annotated[
        float | None, typer.Option("--clip", help="Largest gradient norm; default: no limit.", rich_help_panel=TRAINING)
    ] = None
    penalty: Annotated[
        float | None,
        typer.Option(
            "--lambda", help="Weight of the penalty, for every arm; default: the arm's own.", rich_help_panel=TRAINING
        ),
    ] = None
    evaluate_every: Annotated[
        int | None,
        typer.Option("--evaluate-every", min=1, help="Epochs between evaluations.", rich_help_panel=TRAINING),
    ] = None
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=TRAINING)] = 0
    precision: Annotated[
        Literal["no", "bf16", "fp16"], typer.Option("--precision", help="Mixed precision.", rich_help_panel=TRAINING)
    ] = "no"

    def settings(self) -> FinetuneSettings:
        """Return the preset with what the user changed.

        Raises:
            UsageError: if a number is out of range.
        """
        given: dict[str, Any] = {
            "epochs": self.epochs,
            "learning_rate": self.lr,
            "branch_factor": self.branch_factor,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            "penalty_weight": self.penalty,
            "evaluate_every": self.evaluate_every,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(PRESETS[self.preset], **chosen, seed=self.seed, precision=self.precision)


@dataclass(frozen=True)
class Comparing:
    """What to compare; ``compare`` is None for a single run."""

    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="ARMS",
            help=f"Compare arms ({','.join(ARMS)}) with equal budgets.",
            rich_help_panel=COMPARISON,
        ),
    ] = None
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds per arm.", rich_help_panel=COMPARISON)] = 3
    lr_grid: Annotated[
        str | None,
        typer.Option(
            "--lr-grid",
            metavar="LR,LR,...",
            help="First sweep these for every arm, on validation data.",
            rich_help_panel=COMPARISON,
        ),
    ] = None
    lr_seeds: Annotated[
        int, typer.Option("--lr-seeds", min=1, help="Seeds per point of the sweep.", rich_help_panel=COMPARISON)
    ] = 1
    lr_record: Annotated[
        Path | None,
        typer.Option(
            "--lr-record",
            metavar="FILE",
            help="Take the learning rates from the record of a sweep.",
            rich_help_panel=COMPARISON,
        ),
    ] = None

    def arms(self) -> list[str]:
        """Return the names of the arms."""
        return [name.strip() for name in (self.compare or "").split(",") if name.strip()]

    def grid(self) -> list[float] | None:
        """Return the learning rates to sweep.

        Raises:
            UsageError: if one is not a positive number.
        """
        return _rates(self.lr_grid) if self.lr_grid else None


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"expected learning rates separated by commas after --lr-grid, got {text!r}") from error
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UsageError(f"expected positive learning rates after --lr-grid, got {text!r}")
    return rates
