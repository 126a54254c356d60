"""``surgeon relax``: insert branches and write a relaxed folder."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from surgeon.checkpoint import write_relaxed
from surgeon.errors import PlanError, UsageError
from surgeon.files import check_writable
from surgeon.schedule import Schedule
from surgeon.surgery import relax as insert
from surgeon.workspace import open_path, relaxed_config
from surgeon_cli.commands.inspect import GroupOption
from surgeon_cli.options import (
    EntryOption,
    ForceOption,
    JsonOption,
    ModelArgsOption,
    ModelOption,
    OutOption,
    TaskArgsOption,
    TaskOption,
    TrustPickleOption,
    TrustRemoteCodeOption,
    open_options,
    refuse_overwriting,
)
from surgeon_cli.planning import plan_for
from surgeon_cli.screen import print_json, say, show_plan


def relax(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file.")],
    group: GroupOption = "O3",
    out: OutOption = None,
    include: Annotated[
        list[str] | None, typer.Option("--include", help="Relax only ops whose name matches; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave ops alone whose name matches; may be repeated.")
    ] = None,
    strip_mode: Annotated[
        Literal["drop", "fold"],
        typer.Option("--strip-mode", help="drop: the paper's method; fold: keep the equivariant part of W."),
    ] = "drop",
    schedule: Annotated[
        Literal["triangle", "one-sided", "cosine", "constant"], typer.Option("--schedule", help="theta over time.")
    ] = "triangle",
    init_scale: Annotated[
        float, typer.Option("--init-scale", min=0.0, help="Scale of the initial W; 0 starts at W = 0.")
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    task: TaskOption = None,
    task_args: TaskArgsOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    entry: EntryOption = None,
    trust_pickle: TrustPickleOption = False,
    trust_remote_code: TrustRemoteCodeOption = False,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Insert a branch at every relaxable op and write a relaxed folder; the function of the network does not change.

    Examples:

        surgeon relax segnn.safetensors --group O3 -o relaxed/

        surgeon relax model.pt --group SO3 --task task.py --exclude 'embedding*' --dry-run
    """
    options = open_options(
        task, task_args, model, model_args, None, False, trust_pickle, trust_remote_code, json_output, entry
    )
    target = out or Path(f"{path.stem}-relaxed")
    if not math.isfinite(init_scale):
        raise UsageError(f"expected a finite --init-scale, got {init_scale}")
    if not dry_run:
        refuse_overwriting(target, path, task)
        check_writable(target, force)
    started = time.perf_counter()
    workspace = open_path(path, options)
    if workspace.relaxation is not None:
        raise PlanError(f"expected a checkpoint without branches, got the relaxed folder {str(path)!r}: strip it first")
    opened = time.perf_counter()
    plan, _ = plan_for(workspace, group, include or [], exclude or [])
    own = sum(parameter.numel() for parameter in workspace.model.parameters())
    relaxation = insert(workspace.model, plan, mode=strip_mode, schedule=Schedule(schedule), init_scale=init_scale)
    seconds = {"open": opened - started, "relax": time.perf_counter() - opened}
    if not dry_run:
        config = relaxed_config(workspace, relaxation, penalty_weight=0.01, penalty_scale="relative")
        write_relaxed(target, workspace.model, config, workspace.checkpoint.metadata, force)
    if json_output:
        written = None if dry_run else str(target)
        print_json({"written": written, "seconds": seconds, "plan": dataclasses.asdict(plan)})
        return
    show_plan(plan, own)
    say(
        "dry run: nothing was written"
        if dry_run
        else f"wrote {target}/ (opened in {seconds['open']:.1f} s, "
        f"relaxed in {seconds['relax']:.1f} s); next: surgeon finetune {target}"
    )
