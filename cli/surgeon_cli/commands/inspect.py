"""``surgeon inspect``: what is in a checkpoint and what can be relaxed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.errors import UsageError
from surgeon.files.atomic import check_writable
from surgeon.files.content import json_compatible, write_json, write_text
from surgeon.opening.open import open_path
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import ActionOption, ForceOption, GroupOption, JsonOption, Reopening
from surgeon_cli.plan_screen import show_breaks, show_plan, showing_refusals
from surgeon_cli.planning import apply_action, breaks_of, picture_of, plan_for
from surgeon_cli.screen import print_json, say


@dataclass(frozen=True)
class Showing:
    """What else to make of an inspection."""

    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="FILE", help="Also write the plan as JSON, to edit and give to `surgeon relax`."
        ),
    ] = None
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Also draw the model's graph with its sites, as SVG."),
    ] = None
    find_breaks: Annotated[
        bool,
        typer.Option("--find-breaks", help="Only look for the first op at which equivariance fails (exit code 1)."),
    ] = False


@unbundled
def inspect(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file, relaxed folder or hf:// path.")],
    *,
    opening: Reopening,
    showing: Showing,
    group: GroupOption = "O3",
    action: ActionOption = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Show what is in a checkpoint, which ops are relaxable, and why the others are not. Changes nothing.

    Examples:

        surgeon inspect segnn.safetensors --group O3

        surgeon inspect model.pt --group SO3 --model mypackage.nets:make_net --model-args '{"hidden": 32}'

        surgeon inspect model.pt --group SO3 --task task.py --plan plan.json --picture model.svg
    """
    for output in (showing.plan, showing.picture):
        if output is not None:
            check_writable(output, force)
    workspace = open_path(path, opening.options(json_output))
    apply_action(workspace, action)
    if showing.find_breaks:
        _find_breaks(workspace, group, json_output)
        return
    errors: dict[str, ErrorSummary] = {}
    if workspace.relaxation is not None:
        plan = workspace.relaxation.plan
        own = sum(parameter.numel() for parameter in workspace.relaxation.base_parameters())
    else:
        with showing_refusals(json_output):
            plan, errors = plan_for(workspace, group, [], [])
        own = sum(parameter.numel() for parameter in workspace.model.parameters())
    if json_output:
        report = {"path": workspace.name, "model": type(workspace.model).__name__, "found_by": workspace.found.source}
        symmetry = {name: dataclasses.asdict(error) for name, error in errors.items()}
        print_json({**report, "parameters": own, "equivariance_error": symmetry, "plan": plan.to_data()})
    else:
        _describe(workspace, own)
        show_plan(plan, workspace.model, own)
        for component, error in errors.items():
            numbers = f"at most {error.maximum:.1e} (under {error.worst}), median {error.median:.1e}"
            say(f"the model's own equivariance error, component {component}: {numbers}")
    _write(workspace, plan, showing, force, json_output)


def _write(workspace: Workspace, plan: Plan, showing: Showing, force: bool, quiet: bool) -> None:
    if showing.plan is not None:
        write_json(showing.plan, plan.to_data(), force=force)
    if showing.picture is not None:
        if workspace.relaxation is not None:
            raise UsageError("expected a checkpoint for a picture, got a relaxed folder: give the original checkpoint")
        write_text(showing.picture, picture_of(workspace, plan), force=force)
    for written in (showing.plan, showing.picture):
        if written is not None and not quiet:
            say(f"wrote {written}")


def _find_breaks(workspace: Workspace, group: str, json_output: bool) -> None:
    breaks = breaks_of(workspace, group)
    if json_output:
        data: Any = json_compatible({**dataclasses.asdict(breaks), "broken": breaks.broken})
        print_json(data)
    else:
        show_breaks(breaks)
    if breaks.broken:
        raise typer.Exit(1)


def _describe(workspace: Workspace, parameters: int) -> None:
    container = workspace.checkpoint.container
    say(f"{workspace.name}: {type(workspace.model).__name__}, {parameters:,} parameters, {container}")
    say(f"model found by {workspace.found.source}")
    if workspace.relaxation is not None:
        perpendicular, parallel = workspace.relaxation.theta
        say(
            f"relaxed, theta {perpendicular:g} (foldable part {parallel:g}), "
            f"to be stripped by {workspace.relaxation.mode}"
        )
