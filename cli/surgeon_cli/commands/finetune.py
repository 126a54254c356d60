"""``surgeon finetune``: train a relaxed folder, or compare arms."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from surgeon.errors import UsageError
from surgeon.training import ARMS, PRESETS
from surgeon_cli.commands.measure import PathArgument
from surgeon_cli.comparing import run_comparison
from surgeon_cli.options import (
    AcceptChangedTaskOption,
    ForceOption,
    JsonOption,
    ModelArgsOption,
    ModelOption,
    OriginalOption,
    OutOption,
    TaskArgsOption,
    TaskOption,
    TrustPickleOption,
    TrustRemoteCodeOption,
    folder_or_only,
    open_options,
)
from surgeon_cli.running import run_training

TRAINING = "Training"
COMPARISON = "Comparison"


def finetune(
    path: PathArgument = None,
    out: OutOption = None,
    arm: Annotated[
        str | None, typer.Option("--arm", help="drop, fold or overparam; default: as the folder is to be stripped.")
    ] = None,
    preset: Annotated[
        Literal["default", "paper"],
        typer.Option("--preset", help="Starting point for all settings.", rich_help_panel=TRAINING),
    ] = "default",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, rich_help_panel=TRAINING)] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate of the base weights.", rich_help_panel=TRAINING)
    ] = None,
    branch_factor: Annotated[
        float | None,
        typer.Option("--branch-factor", help="Learning rate of W as a multiple of --lr.", rich_help_panel=TRAINING),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", rich_help_panel=TRAINING)] = None,
    clip: Annotated[
        float | None, typer.Option("--clip", help="Largest gradient norm.", rich_help_panel=TRAINING)
    ] = None,
    penalty: Annotated[
        float | None,
        typer.Option("--lambda", help="Weight of the penalty; default: the arm's own.", rich_help_panel=TRAINING),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option("--evaluate-every", min=1, help="Epochs between evaluations.", rich_help_panel=TRAINING),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=TRAINING)] = 0,
    precision: Annotated[
        Literal["no", "bf16", "fp16"], typer.Option("--precision", help="Mixed precision.", rich_help_panel=TRAINING)
    ] = "no",
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="ARMS",
            help=f"Compare arms ({','.join(ARMS)}) with equal budgets.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds per arm.", rich_help_panel=COMPARISON)] = 3,
    lr_grid: Annotated[
        str | None,
        typer.Option(
            "--lr-grid",
            metavar="LR,LR,...",
            help="First sweep these for every arm, on validation data.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    lr_seeds: Annotated[
        int, typer.Option("--lr-seeds", min=1, help="Seeds per point of the sweep.", rich_help_panel=COMPARISON)
    ] = 1,
    lr_record: Annotated[
        Path | None,
        typer.Option(
            "--lr-record",
            metavar="FILE",
            help="Take the learning rates from the record of a sweep.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    task: TaskOption = None,
    task_args: TaskArgsOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    original: OriginalOption = None,
    accept_changed_task: AcceptChangedTaskOption = False,
    trust_pickle: TrustPickleOption = False,
    trust_remote_code: TrustRemoteCodeOption = False,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Fine-tune a relaxed folder while theta goes 0 -> 1 -> 0; the folder itself stays as it is.

    The run folder holds the best weights by clean validation and what a resume needs: after an interruption the same
    command goes on. With --compare the arms are trained side by side from the original and only a record is written.

    Examples:

        surgeon finetune segnn-relaxed --epochs 20 --lr 1e-3

        surgeon finetune segnn-relaxed --compare plain,drop,fold,overparam --seeds 3
    """
    options = open_options(
        task, task_args, model, model_args, original, accept_changed_task, trust_pickle, trust_remote_code, json_output
    )
    given: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": lr,
        "branch_factor": branch_factor,
        "weight_decay": weight_decay,
        "clip": clip,
        "penalty_weight": penalty,
        "evaluate_every": evaluate_every,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(PRESETS[preset], **chosen, seed=seed, precision=precision)
    folder = folder_or_only(path, json_output, untrained=True)
    if compare is not None:
        if arm is not None:
            raise UsageError("expected either --arm or --compare, got both: leave one out")
        grid = _rates(lr_grid) if lr_grid else None
        arms = [name.strip() for name in compare.split(",") if name.strip()]
        run_comparison(folder, out, arms, seeds, settings, grid, lr_record, options, force, json_output, lr_seeds)
        return
    if lr_grid or lr_record:
        raise UsageError("expected --lr-grid and --lr-record together with --compare: add it, or give --lr")
    run_training(folder, out, arm, settings, options, force, json_output)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"expected learning rates separated by commas after --lr-grid, got {text!r}") from error
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UsageError(f"expected positive learning rates after --lr-grid, got {text!r}")
    return rates
