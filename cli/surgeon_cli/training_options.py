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
from surgeon.algebra.penalty_settings import PenaltyForm
from surgeon.errors import UsageError
from surgeon.training.arms import ARMS, WITHOUT_BRANCHES
from surgeon.training.settings import PRESETS, Decay, FinetuneSettings, Normalisation, OptimizerName, Precision
from surgeon.training.weighting import PenaltyScale

if TYPE_CHECKING:
    from surgeon.training.compare import CompareSettings
    from surgeon.training.search import AutoSettings

searching_option = functools.partial(typer.Option, rich_help_panel="Search")
comparing_option = functools.partial(typer.Option, rich_help_panel="Comparison")


def setting_option(panel: str, flag: str, help: str, of: str = "", **more: Any) -> Any:
    """Return an option that leaves a setting as the preset has it, and says which value that is by default.

    Args:
        panel: of the help.
        flag: as on the command line.
        help: ends with a full stop.
        of: name of the setting, if it is not the flag's.
        more: for typer.
    """
    default = getattr(PRESETS["default"], of or flag.removeprefix("--").replace("-", "_"))
    if default is not None and not isinstance(default, bool):
        help = f"{help.removesuffix('.')}; default: {default}."
    return typer.Option(flag, rich_help_panel=panel, help=help, **more)


KEEPING, RARE = "What is written", "Settings that few trainings need"
training_option = functools.partial(setting_option, "Training")
rare_option = functools.partial(setting_option, RARE)


@dataclass(frozen=True)
class Training:
    """How to train."""

    preset: Annotated[
        Literal["default", "paper"],
        typer.Option(
            "--preset",
            rich_help_panel="Training",
            help="Starting point for all settings, whose defaults are said here; paper: after `relax --dense`.",
        ),
    ] = "default"
    epochs: Annotated[int | None, training_option("--epochs", min=1, help="Passes over the training batches.")] = None
    lr: Annotated[
        float | None,
        training_option(
            "--lr",
            of="learning_rate",
            help="Learning rate of the base weights; default: 0.001, or what the task prefers.",
        ),
    ] = None
    optimizer: Annotated[
        OptimizerName | None,
        training_option(
            "--optimizer",
            metavar="NAME",
            help="adamw, adam, sgd, soap or muon; the last two act on the matrices inside the weights; default: adamw, "
            "or what the task prefers.",
        ),
    ] = None
    ema: Annotated[
        float | None, training_option("--ema", help="Evaluate and keep a running average with this decay.")
    ] = None
    freeze_base: Annotated[bool, training_option("--freeze-base", help="Train the added weights alone.")] = False
    evaluate_every: Annotated[
        int | None, training_option("--evaluate-every", min=1, help="Epochs between evaluations.")
    ] = None
    patience: Annotated[
        int | None, training_option("--patience", min=1, help="Stop after so many evaluations without a better one.")
    ] = None
    seed: Annotated[int | None, training_option("--seed", help="Of everything random in the training.")] = None
    precision: Annotated[Precision | None, training_option("--precision", help="Mixed precision.")] = None


@dataclass(frozen=True)
class Rare:
    """What few trainings need: details of the optimiser, replay, and how the branches take part."""

    branch_factor: Annotated[
        float | None, rare_option("--branch-factor", help="Learning rate of W as a multiple of --lr.")
    ] = None
    gauge_factor: Annotated[
        float | None,
        rare_option(
            "--gauge-factor", help="The same for added weights that the base could express itself (overparam, lowrank)."
        ),
    ] = None
    penalty: Annotated[
        float | None,
        rare_option(
            "--lambda", of="penalty_weight", help="Weight of the penalty, for every arm; default: the arm's own."
        ),
    ] = None
    penalty_scale: Annotated[
        PenaltyScale | None,
        rare_option("--penalty-scale", help="lambda times the running mean of the loss, or as it is."),
    ] = None
    penalty_form: Annotated[
        PenaltyForm | None,
        rare_option("--penalty-form", help="Root of the mean square, mean of the norms (the paper's), or mean square."),
    ] = None
    exact_penalty: Annotated[
        bool,
        typer.Option(
            "--exact-penalty",
            rich_help_panel=RARE,
            help="All rows at every step, instead of some every few.",
        ),
    ] = False
    adaptive_theta: Annotated[
        bool,
        rare_option("--adaptive-theta", help="Halve theta while the relaxed model is worse than the projected one."),
    ] = False
    refold_every: Annotated[int | None, rare_option("--refold-every", min=1, help="Steps, in the arm refold.")] = None
    low_rank: Annotated[int | None, rare_option("--low-rank", min=1, help="Rank, in the arm lowrank.")] = None
    dual_rate: Annotated[float | None, rare_option("--dual-rate", help="Rate of the multipliers, in the arm ace.")] = (
        None
    )
    recalibrate: Annotated[
        int | None,
        rare_option("--recalibrate", min=0, help="Training batches for BatchNorm statistics at each clean evaluation."),
    ] = None
    beta2: Annotated[
        float | None,
        rare_option("--beta2", help="Decay of mean squares; default: 0.999, with soap and muon 0.95."),
    ] = None
    normalisation: Annotated[
        Normalisation | None,
        rare_option("--normalisation", help="How Adam scales steps of W: by entry, or by block."),
    ] = None
    weight_decay: Annotated[float | None, rare_option("--weight-decay", help="Of all weights.")] = None
    clip: Annotated[float | None, rare_option("--clip", help="Largest gradient norm; default: no limit.")] = None
    decay: Annotated[
        Decay | None,
        rare_option(
            "--lr-decay", of="decay", metavar="SHAPE", help="Of the learning rate: cosine, linear, constant, step."
        ),
    ] = None
    decay_factor: Annotated[
        float | None, rare_option("--lr-decay-factor", of="decay_factor", help="With --lr-decay step.")
    ] = None
    decay_every: Annotated[
        int | None, rare_option("--lr-decay-every", of="decay_every", min=1, help="Epochs, with --lr-decay step.")
    ] = None
    warmup: Annotated[
        int | None,
        rare_option(
            "--warmup", min=0, help="Steps in which the learning rate rises; default: 0, with soap and muon 10."
        ),
    ] = None
    accumulate: Annotated[int | None, rare_option("--accumulate", min=1, help="Batches per optimiser step.")] = None
    replay: Annotated[
        str | None,
        rare_option(
            "--replay",
            metavar="perturb|TASK",
            help="Also train towards the original's own outputs, on the training batches with noise or on other data.",
        ),
    ] = None
    replay_weight: Annotated[
        float | None, rare_option("--replay-weight", help="Weight of that beside the task's loss.")
    ] = None
    replay_share: Annotated[
        float | None, rare_option("--replay-share", help="Share of the training batches with it.")
    ] = None
    replay_noise: Annotated[
        float | None,
        rare_option("--replay-noise", help="Relative to each input's spread, for potentials in A."),
    ] = None
    deterministic: Annotated[
        bool, rare_option("--deterministic", help="Refuse operations that differ from run to run.")
    ] = False


def chosen_settings(training: Training, rare: Rare) -> FinetuneSettings:
    """Return the preset with what the user changed.

    Raises:
        UsageError: if a number is out of range.
    """
    given: dict[str, Any] = {**_changed(training), **_changed(rare)}
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
            rich_help_panel=KEEPING,
            help="Optimiser steps between saves besides those after each evaluation.",
        ),
    ] = None
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", rich_help_panel=KEEPING, help="Log to tensorboard, wandb or mlflow, too; may be repeated."
        ),
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
            help=f"Compare arms ({', '.join(ARMS)}) with equal budgets; plain@soap or plain@adamw+beta2=0.95 with an "
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
            "--among", metavar="ARMS", help=f"Arms to choose from; default: {', '.join(WITHOUT_BRANCHES)}."
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
