"""The options of ``surgeon finetune``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from surgeon.errors import UsageError
from surgeon.training.arms import ARMS
from surgeon.training.compare import CompareSettings
from surgeon.training.settings import PRESETS, FinetuneSettings

TRAINING = "Training"
COMPARISON = "Comparison"
RELAXING = "Relaxation"


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
    gauge_factor: Annotated[
        float | None,
        typer.Option(
            "--gauge-factor",
            help="The same for added weights that the base could express itself (overparam, lowrank).",
            rich_help_panel=TRAINING,
        ),
    ] = None
    optimizer: Annotated[
        Literal["adamw", "adam", "sgd"] | None, typer.Option("--optimizer", rich_help_panel=TRAINING)
    ] = None
    normalisation: Annotated[
        Literal["entry", "block"] | None,
        typer.Option(
            "--normalisation", help="How Adam scales steps of W: by entry, or by block.", rich_help_panel=TRAINING
        ),
    ] = None
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", rich_help_panel=TRAINING)] = None
    clip: Annotated[
        float | None, typer.Option("--clip", help="Largest gradient norm; default: no limit.", rich_help_panel=TRAINING)
    ] = None
    decay: Annotated[
        Literal["cosine", "linear", "constant", "step"] | None,
        typer.Option("--lr-decay", help="Learning rate over time.", rich_help_panel=TRAINING),
    ] = None
    decay_factor: Annotated[
        float | None,
        typer.Option("--lr-decay-factor", help="With --lr-decay step.", rich_help_panel=TRAINING),
    ] = None
    decay_every: Annotated[
        int | None,
        typer.Option("--lr-decay-every", min=1, help="Epochs, with --lr-decay step.", rich_help_panel=TRAINING),
    ] = None
    warmup: Annotated[
        int | None,
        typer.Option("--warmup", min=0, help="Steps in which the learning rate rises.", rich_help_panel=TRAINING),
    ] = None
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", min=1, help="Batches per optimiser step.", rich_help_panel=TRAINING)
    ] = None
    ema: Annotated[
        float | None,
        typer.Option("--ema", help="Evaluate and keep a running average with this decay.", rich_help_panel=TRAINING),
    ] = None
    freeze_base: Annotated[
        bool, typer.Option("--freeze-base", help="Train the added weights alone.", rich_help_panel=TRAINING)
    ] = False
    evaluate_every: Annotated[
        int | None,
        typer.Option("--evaluate-every", min=1, help="Epochs between evaluations.", rich_help_panel=TRAINING),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            "--patience", min=1, help="Stop after so many evaluations without a better one.", rich_help_panel=TRAINING
        ),
    ] = None
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=TRAINING)] = 0
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Refuse operations that differ from run to run.", rich_help_panel=TRAINING
        ),
    ] = False
    precision: Annotated[
        Literal["no", "bf16", "fp16"], typer.Option("--precision", help="Mixed precision.", rich_help_panel=TRAINING)
    ] = "no"


@dataclass(frozen=True)
class Relaxing:
    """How the branches take part."""

    penalty: Annotated[
        float | None,
        typer.Option(
            "--lambda", help="Weight of the penalty, for every arm; default: the arm's own.", rich_help_panel=RELAXING
        ),
    ] = None
    penalty_scale: Annotated[
        Literal["relative", "absolute"] | None,
        typer.Option(
            "--penalty-scale", help="lambda times the running mean of the loss, or as it is.", rich_help_panel=RELAXING
        ),
    ] = None
    penalty_form: Annotated[
        Literal["gram", "rows", "square"] | None,
        typer.Option(
            "--penalty-form",
            help="Root of the mean square, mean of the norms (the paper's), or mean square.",
            rich_help_panel=RELAXING,
        ),
    ] = None
    exact_penalty: Annotated[
        bool,
        typer.Option(
            "--exact-penalty", help="All rows at every step, instead of some every few.", rich_help_panel=RELAXING
        ),
    ] = False
    adaptive_theta: Annotated[
        bool,
        typer.Option(
            "--adaptive-theta",
            help="Halve theta while the relaxed model is worse than the projected one.",
            rich_help_panel=RELAXING,
        ),
    ] = False
    refold_every: Annotated[
        int | None,
        typer.Option("--refold-every", min=1, help="Steps, in the arm refold.", rich_help_panel=RELAXING),
    ] = None
    low_rank: Annotated[
        int | None, typer.Option("--low-rank", min=1, help="Rank, in the arm lowrank.", rich_help_panel=RELAXING)
    ] = None
    dual_rate: Annotated[
        float | None,
        typer.Option("--dual-rate", help="Rate of the multipliers, in the arm ace.", rich_help_panel=RELAXING),
    ] = None
    recalibrate: Annotated[
        int | None,
        typer.Option(
            "--recalibrate",
            min=0,
            help="Training batches for BatchNorm statistics at each clean evaluation.",
            rich_help_panel=RELAXING,
        ),
    ] = None


def settings_of(training: Training, relaxing: Relaxing) -> FinetuneSettings:
    """Return the preset with what the user changed.

    Raises:
        UsageError: if a number is out of range.
    """
    given: dict[str, Any] = {**_changed(training), **_changed(relaxing)}
    renamed = {"lr": "learning_rate", "penalty": "penalty_weight"}
    settings = {renamed.get(name, name): value for name, value in given.items()}
    preset = PRESETS[settings.pop("preset", "default")]
    if settings.pop("exact_penalty", False):
        settings |= {"penalty_rows": None, "penalty_every": 1}
    return dataclasses.replace(preset, **settings)


def _changed(options: Any) -> dict[str, Any]:
    """Return the options that differ from their defaults, by name."""
    fields = dataclasses.fields(options)
    return {item.name: getattr(options, item.name) for item in fields if getattr(options, item.name) != item.default}


@dataclass(frozen=True)
class Keeping:
    """What is written while it trains."""

    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every",
            min=1,
            help="Optimiser steps between saves besides those after each evaluation.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", help="Log to tensorboard, wandb or mlflow, too; may be repeated.", rich_help_panel=TRAINING
        ),
    ] = None


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
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", min=1, help="Processes that share the runs; the results are the same.", rich_help_panel=COMPARISON
        ),
    ] = 1
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help='Spread the runs over a Ray cluster; "local" starts one here.',
            rich_help_panel=COMPARISON,
        ),
    ] = None
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Begin anew: finished runs of the comparison are deleted.", rich_help_panel=COMPARISON
        ),
    ] = False

    def settings(self, training: FinetuneSettings) -> CompareSettings:
        """Return the engine's settings.

        Raises:
            UsageError: if an arm is unknown, a rate is not a positive number, or options exclude each other.
        """
        arms = [name.strip() for name in (self.compare or "").split(",") if name.strip()]
        grid = _rates(self.lr_grid) if self.lr_grid else None
        return CompareSettings(arms, self.seeds, training, grid, self.lr_seeds, self.lr_record, self.jobs, self.ray)

    def refuse(self) -> None:
        """Refuse what belongs to a comparison where there is none.

        Raises:
            UsageError: if one of these was given.
        """
        if self.lr_grid or self.lr_record or self.jobs > 1 or self.ray or self.restart:
            raise UsageError(
                "expected --lr-grid, --lr-record, --jobs, --ray and --restart together with --compare: add it, or "
                "leave them out"
            )


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"expected learning rates separated by commas after --lr-grid, got {text!r}") from error
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UsageError(f"expected positive learning rates after --lr-grid, got {text!r}")
    return rates
