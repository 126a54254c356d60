"""``surgeon inspect``: what is in a checkpoint and what can be relaxed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from surgeon.types import ErrorSummary
from surgeon.workspace import Workspace, open_path
from surgeon_cli.options import (
    AcceptChangedTaskOption,
    EntryOption,
    JsonOption,
    ModelArgsOption,
    ModelOption,
    OriginalOption,
    TaskArgsOption,
    TaskOption,
    TrustPickleOption,
    TrustRemoteCodeOption,
    open_options,
)
from surgeon_cli.planning import plan_for
from surgeon_cli.screen import print_json, say, show_plan

GroupOption = Annotated[
    str,
    typer.Option("--group", "-g", help="Symmetry group: SO3, O3, SE3, E3, or module:function for your own generators."),
]


def inspect(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file or relaxed folder.")],
    group: GroupOption = "O3",
    task: TaskOption = None,
    task_args: TaskArgsOption = None,
    model: ModelOption = None,
    model_args: ModelArgsOption = None,
    entry: EntryOption = None,
    original: OriginalOption = None,
    accept_changed_task: AcceptChangedTaskOption = False,
    trust_pickle: TrustPickleOption = False,
    trust_remote_code: TrustRemoteCodeOption = False,
    json_output: JsonOption = False,
) -> None:
    """Show what is in a checkpoint, which ops are relaxable, and why the others are not. Changes nothing.

    Examples:

        surgeon inspect segnn.safetensors --group O3

        surgeon inspect model.pt --group SO3 --model mypackage.nets:make_net --model-args '{"hidden": 32}'
    """
    options = open_options(
        task,
        task_args,
        model,
        model_args,
        original,
        accept_changed_task,
        trust_pickle,
        trust_remote_code,
        json_output,
        entry,
    )
    workspace = open_path(path, options)
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
