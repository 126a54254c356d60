"""``surgeon finetune``: train a relaxed folder, or compare arms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from surgeon.errors import UsageError
from surgeon_cli.bundles import unbundled
from surgeon_cli.comparing import run_comparison, runs_beside
from surgeon_cli.options import ForceOption, JsonOption, OutOption, PathArgument, Reopening, folder_or_only, output_stem
from surgeon_cli.running import run_training, writing_alone
from surgeon_cli.training_options import Comparing, Keeping, Relaxing, Training, settings_of


@unbundled
def finetune(
    path: PathArgument = None,
    *,
    out: OutOption = None,
    arm: Annotated[
        str | None,
        typer.Option("--arm", help="drop, fold, refold, overparam or ace; default: the folder's strip mode."),
    ] = None,
    training: Training,
    relaxing: Relaxing,
    keeping: Keeping,
    comparing: Comparing,
    opening: Reopening,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Fine-tune a relaxed folder while theta goes 0 -> 1 -> 0; the folder itself stays as it is.

    The run folder holds the best weights by clean validation and what a resume needs: after an interruption the same
    command goes on. With --compare the arms are trained side by side from the original and only a record is written,
    with every run in a folder beside it, from which the same command goes on; --restart replaces these runs.

    Examples:

        surgeon finetune segnn-relaxed --epochs 20 --lr 1e-3

        surgeon finetune segnn-relaxed --compare plain,drop,fold,overparam --seeds 3
    """
    options, settings = opening.options(json_output), settings_of(training, relaxing)
    folder = folder_or_only(path, json_output, trained=False)
    stem = output_stem(folder).removesuffix("-relaxed")
    if comparing.compare is not None:
        if arm is not None:
            raise UsageError("expected either --arm or --compare, got both: leave one out")
        record = out or Path(f"{stem}-compare.json")
        with writing_alone(runs_beside(record)):
            run_comparison(folder, record, comparing, settings, options, force, json_output)
        return
    if comparing.lr_grid or comparing.lr_record or comparing.jobs > 1 or comparing.ray or comparing.restart:
        raise UsageError(
            "expected --lr-grid, --lr-record, --jobs, --ray and --restart together with --compare: add it, or leave "
            "them out"
        )
    target = out or Path(f"{stem}-run")
    with writing_alone(target):
        run_training(folder, target, arm, settings, keeping, options, force, json_output)
