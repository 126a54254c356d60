"""``surgeon inspect``: what is in a checkpoint and what can be relaxed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from surgeon.types import ErrorSummary
from surgeon.workspace import Workspace, open_path
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import GroupOption, JsonOption, Reopening
from surgeon_cli.planning import plan_for
from surgeon_cli.screen import print_json, say, show_plan


@unbundled
def inspect(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file or relaxed folder.")],
    *,
    opening: Reopening,
    group: GroupOption = "O3",
    json_output: JsonOption = False,
) -> None:
    """Show what is in a checkpoint, which ops are relaxable, and why the others are not. Changes nothing.

    Examples:

        surgeon inspect segnn.safetensors --group O3

        surgeon inspect model.pt --group SO3 --model mypackage.nets:make_net --model-args '{"hidden": 32}'
    """
    workspace = open_path(path, opening.options(json_output))
    errors: dict[str, ErrorSummary] = {}
    if workspace.relaxation is not None:
        plan = workspace.relaxation.plan
        own = sum(parameter.numel() for parameter in workspace.relaxation.base_parameters())
    else:
        plan, errors = plan_for(workspace, group, [], [])
        own = sum(parameter.numel() for parameter in workspace.model.parameters())
    if json_output:
        report = {"path": str(path), "model": type(workspace.model).__name__, "found_by": workspace.found.source}
        symmetry = {name: dataclasses.asdict(error) for name, error in errors.items()}
        print_json({**report, "parameters": own, "equivariance_error": symmetry, "plan": plan.to_data()})
        return
    _describe(workspace, own)
    show_plan(plan, own)
    for component, error in errors.items():
        say(f"the model's own equivariance error under {component}: median {error.median:.1e}, max {error.maximum:.1e}")


def _describe(workspace: Workspace, parameters: int) -> None:
    container = workspace.checkpoint.container
    say(f"{workspace.path}: {type(workspace.model).__name__}, {parameters:,} parameters, {container}")
    say(f"model found by {workspace.found.source}")
    if workspace.relaxation is not None:
        perpendicular, parallel = workspace.relaxation.theta
        say(
            f"relaxed, theta {perpendicular:g} (foldable part {parallel:g}), "
            f"to be stripped by {workspace.relaxation.mode}"
        )
