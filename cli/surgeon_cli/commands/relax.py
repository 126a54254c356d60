"""``surgeon relax``: insert branches and write a relaxed folder."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from surgeon.algebra.schedule import Schedule
from surgeon.editing.insert import relax as insert
from surgeon.editing.select import select
from surgeon.errors import PlanError, UsageError
from surgeon.files.atomic import check_writable
from surgeon.files.outputs import refuse_overwriting
from surgeon.files.relaxed import write_relaxed
from surgeon.opening.description import relaxed_config
from surgeon.opening.evaluation import rehearse
from surgeon.opening.open import open_path
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan
from surgeon_cli.bundles import unbundled
from surgeon_cli.narrowing import Narrowing, narrowed, theta_shares
from surgeon_cli.options import (
    ActionOption,
    Finding,
    ForceOption,
    JsonOption,
    OptionalGroupOption,
    OutOption,
    output_stem,
)
from surgeon_cli.plan_screen import show_plan, showing_refusals
from surgeon_cli.planning import apply_action, plan_for, read_plan
from surgeon_cli.screen import print_json, say


@dataclass(frozen=True)
class Inserting:
    """Where branches go and how they start."""

    include: Annotated[
        list[str] | None, typer.Option("--include", help="Relax only ops whose name matches; may be repeated.")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave ops alone whose name matches; may be repeated.")
    ] = None
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Insert what this plan says instead of looking for ops."),
    ] = None
    strip_mode: Annotated[
        Literal["drop", "fold"],
        typer.Option("--strip-mode", help="drop: the paper's method; fold: keep the equivariant part of W."),
    ] = "drop"
    schedule: Annotated[
        Literal["triangle", "one-sided", "cosine", "constant", "early"],
        typer.Option("--schedule", help="theta over time."),
    ] = "triangle"
    init_scale: Annotated[
        float, typer.Option("--init-scale", min=0.0, help="Scale of the initial W; 0 starts at W = 0.")
    ] = 0.0
    theta_site: Annotated[
        list[str] | None,
        typer.Option(
            "--theta-site", metavar="PATTERN=SHARE", help="Share of theta for matching sites; may be repeated."
        ),
    ] = None


@unbundled
def relax(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file or hf:// path.")],
    *,
    opening: Finding,
    inserting: Inserting,
    narrowing: Narrowing,
    group: OptionalGroupOption = None,
    out: OutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    action: ActionOption = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Insert a branch at every relaxable op and write a relaxed folder; the function of the network does not change.

    Examples:

        surgeon relax segnn.safetensors --group O3 -o relaxed/

        surgeon relax model.pt --group SO3 --task task.py --exclude 'embedding*' --dry-run

        surgeon relax model.pt --task task.py --plan plan.json

        surgeon relax model.pt --task task.py --rank 8 --max-extra-params 30%

        surgeon relax hf://owner/name --group O3 --task task.py
    """
    target = out or Path(f"{output_stem(path)}-relaxed")
    if not math.isfinite(inserting.init_scale):
        raise UsageError(f"expected a finite --init-scale, got {inserting.init_scale}")
    if not dry_run:
        refuse_overwriting(target, path, opening.task)
        check_writable(target, force)
    started = time.perf_counter()
    workspace = open_path(path, opening.options(json_output))
    apply_action(workspace, action)
    _refuse_unusable(workspace)
    opened = time.perf_counter()
    own = sum(parameter.numel() for parameter in workspace.model.parameters())
    with showing_refusals(json_output):
        found = _plan(workspace, inserting, group)
    plan = narrowed(found, narrowing, own)
    relaxation = insert(
        workspace.model,
        plan,
        mode=inserting.strip_mode,
        schedule=Schedule(inserting.schedule, sites=theta_shares(inserting.theta_site or [])),
        init_scale=inserting.init_scale,
    )
    seconds = {"open": opened - started, "relax": time.perf_counter() - opened}
    if not dry_run:
        config = relaxed_config(workspace, relaxation, penalty_weight=0.01, penalty_scale="relative")
        write_relaxed(target, workspace.model, config, workspace.checkpoint.metadata, force)
    if json_output:
        written = None if dry_run else str(target)
        print_json({"written": written, "seconds": seconds, "plan": plan.to_data()})
        return
    show_plan(plan, workspace.model, own)
    took = f"(opened in {seconds['open']:.1f} s, relaxed in {seconds['relax']:.1f} s)"
    say("dry run: nothing was written" if dry_run else f"wrote {target}/ {took}; next: surgeon finetune {target}")


def _refuse_unusable(workspace: Workspace) -> None:
    """Refuse a model that has branches already, or that could not be trained."""
    if workspace.relaxation is not None:
        raise PlanError(
            f"expected a checkpoint without branches, got the relaxed model {workspace.name!r}: strip it first"
        )
    if workspace.task is not None:
        rehearse(workspace.model, workspace.task.task)


def _plan(workspace: Workspace, inserting: Inserting, group: str | None) -> Plan:
    """Return the plan that the user gives, or look for one."""
    include, exclude = inserting.include or [], inserting.exclude or []
    if inserting.plan is not None:
        return select(read_plan(inserting.plan, group), include, exclude)
    return plan_for(workspace, group or "O3", include, exclude)[0]
