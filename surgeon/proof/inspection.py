"""Look at what is in a path: its plan, its equivariance, where that breaks, and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from surgeon.algebra.equivariance import ErrorSummary, projection_error
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.budget import with_fitting_rank
from surgeon.errors import TaskError, UsageError
from surgeon.finding.breaks import Breaks, find_breaks
from surgeon.finding.resolution import constructions
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.flow import recorded_flow
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.planning import plan_for
from surgeon.opening.task_calls import can_act, task_symmetry
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.optim.blocks import WeightBlocks, find_blocks
from surgeon.plan import Plan
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.equivariance import at_full_relaxation, both_precisions, task_equivariance
from surgeon.recording.picture import model_picture
from surgeon.support.memory import large_ones_apart
from surgeon.support.modes import default_dtype, model_dtype
from surgeon.support.stages import Announce, silent, timed
from surgeon.support.trees import to_dtype


@dataclass(frozen=True)
class Inspection:
    """What is in a path.

    Attributes:
        plan: what can be relaxed, or is.
        errors: the model's own equivariance error per component, in its own dtype; empty if the task cannot tell, or
            there are branches.
        parameters: of the network itself.
        weights: the matrices inside its trainable weights, as the optimisers soap and muon see them.
    """

    workspace: Workspace
    plan: Plan
    errors: Mapping[str, ErrorSummary]
    parameters: int
    weights: Sequence[WeightBlocks]

    @property
    def branches(self) -> Plan:
        """The plan with the branches that ``surgeon relax`` makes of it unless told otherwise, or those there are."""
        return self.plan if self.workspace.relaxation else with_fitting_rank(self.plan, self.parameters)

    def picture(self) -> str:
        """Return an SVG of the model's graph with the sites marked.

        Raises:
            TaskError: if there is no task to run the model with.
            UsageError: if there are branches.
        """
        model, task = self.workspace.model, self.workspace.require_task()
        if self.workspace.relaxation is not None:
            raise UsageError("expected a checkpoint for a picture, got a relaxed folder: give the original checkpoint")
        return model_picture(recorded_flow(model, task, self.plan), self.plan)


@large_ones_apart()
def inspect(path: str | Path, group: str | Group | None = None, *, options: OpenOptions | None = None) -> Inspection:
    """Find out what is in a checkpoint, which ops are relaxable, and why the others are not; nothing is changed.

    Args:
        path: a checkpoint, a relaxed folder, or an address on the Hub.
        group: the symmetry; None for O3, or SO3 if only the rotations hold. A relaxed folder has its own.
        options: how to find model and task.

    Raises:
        CheckFailedError: if the group is measurably not the model's symmetry.
        PlanError: if nothing can be relaxed.
    """
    workspace = open_path(path, options)
    if workspace.relaxation is not None:
        own = sum(parameter.numel() for parameter in workspace.relaxation.base_parameters())
        folds = {key: branch.fold_map for key, branch in workspace.relaxation.branches.items()}
        weights = find_blocks(workspace.model, workspace.relaxation.plan, folds=folds)
        return Inspection(workspace, workspace.relaxation.plan, {}, own, weights)
    plan, errors = plan_for(workspace, group), {}
    weights = find_blocks(workspace.model, plan)
    if workspace.task is not None and can_act(workspace.task.task):
        errors = task_equivariance(workspace.model, workspace.task, parse_group(plan.group), MeasureSettings(2, 1))
    total = sum(parameter.numel() for parameter in workspace.model.parameters())
    return Inspection(workspace, plan, errors, total, weights)


def inspect_breaks(path: str | Path, group: str | Group = "O3", *, options: OpenOptions | None = None) -> Breaks:
    """Look for the first op at which a model's equivariance fails.

    Args:
        path: a checkpoint, a relaxed folder, or an address on the Hub.
        group: the symmetry.
        options: how to find model and task.

    Raises:
        TaskError: if no task says how the group acts.
    """
    with constructions() as seen:
        workspace = open_path(path, options)
    task = workspace.require_task()
    if not can_act(task.task):
        raise TaskError(
            "expected a task with `act` and `act_output` to look for breaks with, got one without: add them"
        )
    batch = to_dtype(sample_batches(task, 1)[0], torch.float64)
    twin = workspace.double(workspace.model).eval()
    with default_dtype(torch.float64):
        symmetry = task_symmetry(task.task, parse_group(group))
        return find_breaks(twin, symmetry, batch, made=seen.of(workspace.model))


@dataclass
class MeasuredErrors:
    """What :func:`measure` has found.

    Attributes:
        equivariance: model, dtype and component of the group to the error; "original", and for a relaxed folder
            "relaxed", "relaxed, theta 1" and "clean".
        projection_error: relative change of the outputs when the branches are stripped, of the relaxed ones.
        branch_defects: sqrt(sum_A |L_A(W)|^2) / |W| of every branch.
    """

    group: str
    equivariance: dict[str, Mapping[str, Mapping[str, ErrorSummary]]] = field(default_factory=dict)
    projection_error: dict[str, float] = field(default_factory=dict)
    branch_defects: Mapping[str, float] = field(default_factory=dict)
    settings: MeasureSettings = field(default_factory=MeasureSettings)

    def to_data(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return dataclasses.asdict(self)


@large_ones_apart()
def measure(
    path: str | Path,
    settings: MeasureSettings | None = None,
    *,
    group: str | Group | None = None,
    options: OpenOptions | None = None,
    announce: Announce = silent,
) -> MeasuredErrors:
    """Measure the equivariance error under random elements of every component of the group.

    Args:
        path: a checkpoint, a relaxed folder, or an address on the Hub.
        settings: how much to measure.
        group: the symmetry; None for that of the relaxed folder, or O3.
        options: how to find model and task.
        announce: told how long each stage took.

    Raises:
        TaskError: if no task says how the group acts.
    """
    workspace, settings = open_path(path, options), settings or MeasureSettings()
    if not can_act(workspace.require_task().task):
        raise TaskError("expected act and act_output in the task, which say how the group acts: add both")
    relaxation = workspace.relaxation
    chosen = parse_group(group or (relaxation.plan.group if relaxation else "O3"))
    found = MeasuredErrors(chosen.name, settings=settings)
    with timed("measuring the original", announce):
        found.equivariance["original"] = both_precisions(workspace, workspace.original()[0], chosen, settings)
    if relaxation is None:
        return found
    found.branch_defects = relaxation.defects()
    for name, context in (("relaxed", nullcontext()), ("relaxed, theta 1", at_full_relaxation(relaxation))):
        with timed(f"measuring the model, {name}", announce), context:
            found.equivariance[name] = both_precisions(workspace, workspace.model, chosen, settings)
            found.projection_error[name] = _projection(workspace, settings)
    with timed("measuring the model, clean", announce), relaxation.clean():
        found.equivariance["clean"] = both_precisions(workspace, workspace.model, chosen, settings)
    return found


def _projection(workspace: Workspace, settings: MeasureSettings) -> float:
    """Compare the model as it is with clean evaluation."""
    (relaxation, _), task, model = workspace.require_relaxed(), workspace.require_task(), workspace.model
    samples = [to_dtype(batch, model_dtype(model)) for batch in sample_batches(task, settings.batches)]
    relaxed = outputs_on(model, task.task, samples)
    with relaxation.clean():
        return projection_error(relaxed, outputs_on(model, task.task, samples))
