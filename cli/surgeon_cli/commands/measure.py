"""``surgeon measure``: equivariance and projection errors of what is in a path."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

from surgeon.algebra.equivariance import ErrorSummary, projection_error
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.opening.evaluation import model_dtype, outputs_on
from surgeon.opening.open import open_path
from surgeon.opening.task_calls import can_act
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.proof.verdict import MeasureSettings, at_full_relaxation, both_precisions
from surgeon.support.trees import to_dtype
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import GroupOption, JsonOption, Measuring, PathArgument, Reopening, folder_or_only
from surgeon_cli.screen import console, equivariance_table, print_json, say


@unbundled
def measure(
    path: PathArgument = None,
    *,
    opening: Reopening,
    measuring: Measuring,
    group: GroupOption = "",
    json_output: JsonOption = False,
) -> None:
    """Measure the equivariance error under random elements of every component of the group.

    For a relaxed folder: of the original, of the relaxed model at its present theta and at theta = 1, and of the clean
    model; with the projection error of both, and the defect of every branch.

    Examples:

        surgeon measure segnn.safetensors --group O3

        surgeon measure segnn-run --elements 32 --json
    """
    workspace = open_path(folder_or_only(path, json_output), opening.options(json_output))
    if not can_act(workspace.require_task().task):
        raise TaskError("expected act and act_output in the task, which say how the group acts: add both")
    settings = measuring.settings()
    relaxation = workspace.relaxation
    chosen = parse_group(group or (relaxation.plan.group if relaxation else "O3"))
    equivariance: dict[str, dict[str, dict[str, ErrorSummary]]] = {}
    projections: dict[str, float] = {}
    defects: dict[str, float] = {}
    equivariance["original"] = both_precisions(workspace, workspace.original()[0], chosen, settings)
    if relaxation is not None:
        defects = relaxation.defects()
        for name, context in (("relaxed", nullcontext()), ("relaxed, theta 1", at_full_relaxation(relaxation))):
            with context:
                equivariance[name] = both_precisions(workspace, workspace.model, chosen, settings)
                projections[name] = _projection(workspace, settings)
        with relaxation.clean():
            equivariance["clean"] = both_precisions(workspace, workspace.model, chosen, settings)
    if json_output:
        print_json(_data(chosen.name, equivariance, projections, defects, settings))
        return
    console().print(equivariance_table(equivariance))
    for name, error in projections.items():
        say(f"projection error, {name}: {error:.1e} (relative change of the outputs when the branches are stripped)")
    for key, defect in defects.items():
        say(f"branch {key}: sqrt(sum_A |L_A(W)|^2) / |W| = {defect:.2e}")


def _projection(workspace: Workspace, settings: MeasureSettings) -> float:
    """Compare the model as it is with clean evaluation."""
    task, model, relaxation = workspace.require_task().task, workspace.model, workspace.relaxation
    assert relaxation is not None
    samples = [to_dtype(b, model_dtype(model)) for b in sample_batches(workspace.require_task(), settings.batches)]
    relaxed = outputs_on(model, task, samples)
    with relaxation.clean():
        return projection_error(relaxed, outputs_on(model, task, samples))


def _data(
    group: str,
    equivariance: dict[str, dict[str, dict[str, ErrorSummary]]],
    projections: dict[str, float],
    defects: dict[str, float],
    settings: MeasureSettings,
) -> dict[str, Any]:
    errors = {
        model: {
            dtype: {name: dataclasses.asdict(error) for name, error in components.items()}
            for dtype, components in dtypes.items()
        }
        for model, dtypes in equivariance.items()
    }
    return {
        "group": group,
        "equivariance": errors,
        "projection_error": projections,
        "branch_defects": defects,
        "settings": dataclasses.asdict(settings),
    }
