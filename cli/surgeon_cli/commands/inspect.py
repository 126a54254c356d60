"""``surgeon inspect``: what is in a checkpoint and what can be relaxed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import surgeon
from surgeon.files.atomic import check_writable
from surgeon.files.content import json_compatible, write_json, write_text
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import ActionOption, ForceOption, JsonOption, OptionalGroupOption, ReopenOptions, VerboseOption
from surgeon_cli.screen import print_json, say

if TYPE_CHECKING:
    from surgeon.finding.breaks import Breaks
    from surgeon.opening.workspace import Workspace


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
        typer.Option(
            "--picture",
            metavar="FILE",
            help="Also draw the model's graph with its sites, as SVG; with --find-breaks, where it breaks.",
        ),
    ] = None
    find_breaks: Annotated[
        bool,
        typer.Option("--find-breaks", help="Only look for the first op at which equivariance fails (exit code 1)."),
    ] = False


@unbundled
def inspect(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file, relaxed folder or hf:// path.")],
    *,
    opening: ReopenOptions,
    showing: Showing,
    group: OptionalGroupOption = None,
    action: ActionOption = None,
    force: ForceOption = False,
    verbose: VerboseOption = False,
    json_output: JsonOption = False,
) -> None:
    """Show what is in a checkpoint, which ops are relaxable, and why the others are not. Changes nothing.

    Examples:

        surgeon inspect segnn.safetensors --group O3

        surgeon inspect model.pt --group SO3 --model mypackage.nets:make_net --model-args '{"hidden": 32}'

        surgeon inspect model.pt --group SO3 --task task.py --plan plan.json --picture model.svg
    """
    from surgeon.opening.planning import DEFAULT_GROUP
    from surgeon_cli.plan_screen import show_matrices, show_plan, showing_refusals

    for output in (showing.plan, showing.picture):
        if output is not None:
            check_writable(output, force)
    options = dataclasses.replace(opening.options(json_output), action=action)
    if showing.find_breaks:
        _show_breaks(surgeon.inspect_breaks(path, group or DEFAULT_GROUP, options=options), showing, force, json_output)
        return
    with showing_refusals(json_output, verbose):
        found = surgeon.inspect(path, group, options=options)
    if json_output:
        model = {"model": type(found.workspace.model).__name__, "found_by": found.workspace.found.source}
        symmetry = {name: dataclasses.asdict(error) for name, error in found.errors.items()}
        report = {"path": found.workspace.name, **model, "parameters": found.parameters}
        matrices = [each.to_data() for each in found.weights]
        print_json({**report, "equivariance_error": symmetry, "plan": found.plan.to_data(), "matrices": matrices})
    else:
        _describe(found.workspace, found.parameters)
        show_plan(found.branches, found.workspace.model, found.parameters, verbose)
        show_matrices(found.weights, verbose)
        for component, error in found.errors.items():
            numbers = f"at most {error.maximum:.1e} (under {error.worst}), median {error.median:.1e}"
            say(f"the model's own equivariance error, component {component}: {numbers}")
    if showing.plan is not None:
        write_json(showing.plan, found.plan.to_data(), force=force)
    if showing.picture is not None:
        write_text(showing.picture, found.picture(), force=force)
    for written in (showing.plan, showing.picture):
        if written is not None and not json_output:
            say(f"wrote {written}")


def _show_breaks(breaks: Breaks, showing: Showing, force: bool, json_output: bool) -> None:
    from surgeon.report.breaks import breaks_picture

    if json_output:
        data: Any = json_compatible({**dataclasses.asdict(breaks), "broken": breaks.broken})
        print_json(data)
    else:
        for line in breaks.told():
            say(line)
    if showing.picture is not None:
        write_text(showing.picture, breaks_picture(breaks), force=force)
        if not json_output:
            say(f"wrote {showing.picture}")
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
