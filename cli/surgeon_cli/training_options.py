"""The options of ``surgeon finetune``."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import surgeon
from surgeon.errors import UsageError
from surgeon.training.arms import ARMS, WITHOUT_BRANCHES
from surgeon.training.settings import PRESETS, FinetuneSettings

if TYPE_CHECKING:
    from surgeon.training.auto import AutoSettings
    from surgeon.training.compare import CompareSettings

training_option = functools.partial(typer.Option, rich_help_panel="Training")
relaxing_option = functools.partial(typer.Option, rich_help_panel="Relaxation")
searching_option = functools.partial(typer.Option, rich_help_panel="Search")
comparing_option = functools.partial(typer.Option, rich_help_panel="Comparison")


@dataclass(frozen=True)
class Training:
    """How to train."""

    preset: Annotated[
        Literal["default", "paper"],
        training_option("--preset", help="Starting point for all settings; paper: after `relax --dense`."),
    ] = "default"
    epochs: Annotated[int | None, training_option("--epochs", min=1)] = None
    lr: Annotated[float | None, training_option("--lr", help="Learning rate of the base weights.")] = None
    branch_factor: Annotated[
        float | None, training_option("--branch-factor", help="Learning rate of W as a multiple of --lr.")
    ] = None
    gauge_factor: Annotated[
        float | None,
        training_option(
            "--gauge-factor", help="The same for added weights that the base could express itself (overparam, lowrank)."
        ),
    ] = None
    optimizer: Annotated[
        Literal["adamw", "adam", "sgd", "soap", "muon"] | None,
        training_option("--optimizer", help="soap and muon act on the matrices inside the weights; default: adamw."),
    ] = None
    beta2: Annotated[
        float | None,
        training_option("--beta2", help="Decay of mean squares; default: 0.999, with soap and muon 0.95."),
    ] = None
    normalisation: Annotated[
        Literal["entry", "block"] | None,
        training_option("--normalisation", help="How Adam scales steps of W: by entry, or by block."),
    ] = None
    weight_decay: Annotated[float | None, training_option("--weight-decay")] = None
    clip: Annotated[float | None, training_option("--clip", help="Largest gradient norm; default: no limit.")] = None
    decay: Annotated[
        Literal["cosine", "linear", "constant", "step"] | None,
        training_option("--lr-decay", help="Learning rate over time."),
    ] = None
    decay_factor: Annotated[float | None, training_option("--lr-decay-factor", help="With --lr-decay step.")] = None
    decay_every: Annotated[
        int | None, training_option("--lr-decay-every", min=1, help="Epochs, with --lr-decay step.")
    ] = None
    warmup: Annotated[
        int | None,
        training_option(
            "--warmup", min=0, help="Steps in which the learning rate rises; default: 0, with soap and muon 10."
        ),
    ] = None
    accumulate: Annotated[int | None, training_option("--accumulate", min=1, help="Batches per optimiser step.")] = None
    ema: Annotated[
        float | None, training_option("--ema", help="Evaluate and keep a running average with this decay.")
    ] = None
    replay: Annotated[
        str | None,
        training_option(
            "--replay",
            metavar="perturb|TASK",
            help="Also train towards the original's own outputs, on the training batches with noise or on other data.",
        ),
    ] = None
    replay_weight: Annotated[
        float | None, training_option("--replay-weight", help="Weight of that beside the task's loss; default: 1.")
    ] = None
    replay_share: Annotated[
        float | None, training_option("--replay-share", help="Share of the training batches with it; default: 1.")
    ] = None
    replay_noise: Annotated[
        float | None,
        training_option("--replay-noise", help="Relative to each input's spread, for potentials in A; default: 0.05."),
    ] = None
    freeze_base: Annotated[bool, training_option("--freeze-base", help="Train the added weights alone.")] = False
    evaluate_every: Annotated[
        int | None, training_option("--evaluate-every", min=1, help="Epochs between evaluations.")
    ] = None
    patience: Annotated[
        int | None, training_option("--patience", min=1, help="Stop after so many evaluations without a better one.")
    ] = None
    seed: Annotated[int, training_option("--seed")] = 0
    deterministic: Annotated[
        bool, training_option("--deterministic", help="Refuse operations that differ from run to run.")
    ] = False
    precision: Annotated[Literal["no", "bf16", "fp16"], training_option("--precision", help="Mixed precision.")] = "no"


@dataclass(frozen=True)
class Relaxing:
    """How the branches take part."""

    penalty: Annotated[
        float | None, relaxing_option("--lambda", help="Weight of the penalty, for every arm; default: the arm's own.")
    ] = None
    penalty_scale: Annotated[
        Literal["relative", "absolute"] | None,
        relaxing_option("--penalty-scale", help="lambda times the running mean of the loss, or as it is."),
    ] = None
    penalty_form: Annotated[
        Literal["gram", "rows", "square"] | None,
        relaxing_option(
            "--penalty-form", help="Root of the mean square, mean of the norms (the paper's), or mean square."
        ),
    ] = None
    exact_penalty: Annotated[
        bool, relaxing_option("--exact-penalty", help="All rows at every step, instead of some every few.")
    ] = False
    adaptive_theta: Annotated[
        bool,
        relaxing_option(
            "--adaptive-theta", help="Halve theta while the relaxed model is worse than the projected one."
        ),
    ] = False
    refold_every: Annotated[int | None, relaxing_option("--refold-every", min=1, help="Steps, in the arm refold.")] = (
        None
    )
    low_rank: Annotated[int | None, relaxing_option("--low-rank", min=1, help="Rank, in the arm lowrank.")] = None
    dual_rate: Annotated[
        float | None, relaxing_option("--dual-rate", help="Rate of the multipliers, in the arm ace.")
    ] = None
    recalibrate: Annotated[
        int | None,
        relaxing_option(
            "--recalibrate", min=0, help="Training batches for BatchNorm statistics at each clean evaluation."
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
        training_option(
            "--save-every", min=1, help="Optimiser steps between saves besides those after each evaluation."
        ),
    ] = None
    track: Annotated[
        list[str] | None, training_option("--track", help="Log to tensorboard, wandb or mlflow, too; may be repeated.")
    ] = None

    def refuse(self) -> None:
        """Refuse these in a search.

        Raises:
            UsageError: if one of them was given.
        """
        if self.save_every is not None or self.track:
            raise UsageError("expected no --save-every and no --track with --auto: leave them out")


@dataclass(frozen=True)
class Comparing:
    """What to compare; ``compare`` is None for a single run."""

    compare: Annotated[
        str | None,
        comparing_option(
            "--compare",
            metavar="ARMS",
            help=f"Compare arms ({','.join(ARMS)}) with equal budgets; plain@soap or plain@adamw+beta2=0.95 with an "
            "optimiser of its own.",
        ),
    ] = None
    seeds: Annotated[int, comparing_option("--seeds", min=1, help="Seeds per arm.")] = 3
    lr_grid: Annotated[
        str | None,
        comparing_option(
            "--lr-grid",
            metavar="LR,LR,...",
            help="First sweep these for every arm, and more beyond an edge, on validation data.",
        ),
    ] = None
    lr_seeds: Annotated[int, comparing_option("--lr-seeds", min=1, help="Seeds per point of the sweep.")] = 1
    lr_record: Annotated[
        Path | None,
        comparing_option("--lr-record", metavar="FILE", help="Take the learning rates from the record of a sweep."),
    ] = None
    jobs: Annotated[
        int, comparing_option("--jobs", min=1, help="Processes that share the runs; the results are the same.")
    ] = 1
    ray: Annotated[
        str | None,
        comparing_option(
            "--ray", metavar="ADDRESS", help='Spread the runs over a Ray cluster; "local" starts one here.'
        ),
    ] = None
    keep: Annotated[
        Literal["best", "all", "none"],
        comparing_option("--keep", help="Weights that are kept: of the best seed of every arm, of all runs, or none."),
    ] = "best"
    restart: Annotated[
        bool, comparing_option("--restart", help="Begin anew: finished runs of the comparison are deleted.")
    ] = False

    def settings(self, training: FinetuneSettings) -> CompareSettings:
        """Return the engine's settings.

        Raises:
            UsageError: if an arm is unknown, a rate is not a positive number, or options exclude each other.
        """
        swept = (self.grid, self.lr_seeds, self.lr_record)
        return surgeon.CompareSettings(
            _names(self.compare), self.seeds, training, *swept, self.jobs, self.ray, self.keep
        )

    @property
    def grid(self) -> list[float] | None:
        """The learning rates that are tried; UsageError if one is not a positive number."""
        return _rates(self.lr_grid) if self.lr_grid else None

    def refuse(self, search: bool = False) -> None:
        """Refuse what belongs to a comparison where there is none; a search has a grid, too.

        Raises:
            UsageError: if one of these was given.
        """
        if (
            (self.lr_grid and not search)
            or self.lr_record
            or self.jobs > 1
            or self.ray
            or self.restart
            or self.keep != "best"
        ):
            raise UsageError(
                "expected --lr-grid, --lr-record, --jobs, --ray, --keep and --restart together with --compare: add it, "
                "or leave them out"
            )


@dataclass(frozen=True)
class Searching:
    """What to search among."""

    auto: Annotated[
        bool,
        searching_option(
            "--auto", help="Choose arm, optimiser and learning rate by successive halving on validation data."
        ),
    ] = False
    among: Annotated[
        str | None,
        searching_option(
            "--among", metavar="ARMS", help=f"Arms to choose from; default: {','.join(WITHOUT_BRANCHES)}."
        ),
    ] = None
    budget: Annotated[
        str | None,
        searching_option(
            "--budget", metavar="Nx|STEPS", help="Of all runs together: in whole trainings (default: 10x) or in steps."
        ),
    ] = None

    def settings(self, training: FinetuneSettings, grid: list[float] | None) -> AutoSettings:
        """Return the engine's settings.

        Raises:
            UsageError: if an arm is unknown or the budget no number.
        """
        return surgeon.AutoSettings(training, _names(self.among) or None, grid, _budget(self.budget or "10x"))

    def refuse(self) -> None:
        """Refuse what belongs to a search where there is none.

        Raises:
            UsageError: if one of these was given.
        """
        if self.among or self.budget:
            raise UsageError("expected --among and --budget together with --auto: add it, or leave them out")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _budget(text: str) -> int | float:
    try:
        return float(text[:-1]) if text.endswith("x") else int(text)
    except ValueError as error:
        raise UsageError(f"expected a budget such as 10x (whole trainings) or 5000 (steps), got {text!r}") from error


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"expected learning rates separated by commas after --lr-grid, got {text!r}") from error
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UsageError(f"expected positive learning rates after --lr-grid, got {text!r}")
    return rates
