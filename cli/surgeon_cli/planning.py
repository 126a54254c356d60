"""Find the sites of an opened checkpoint, and refuse a group that is not the model's symmetry."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.select import select
from surgeon.errors import PlanError, TaskError
from surgeon.files.content import read_json
from surgeon.finding.breaks import Breaks, find_breaks
from surgeon.finding.find import find, in_training_mode
from surgeon.opening.evaluation import model_dtype
from surgeon.opening.task_calls import can_act, task_batches, task_forward, task_symmetry
from surgeon.opening.tasks import LoadedTask, sample_batches, with_action
from surgeon.opening.trust import refuse_named_code
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan
from surgeon.proof.verdict import MeasureSettings, task_equivariance
from surgeon.recording.picture import model_picture
from surgeon.recording.record import record
from surgeon.support.modes import default_dtype
from surgeon.support.trees import to_dtype

FURTHER = 1
"""Batches per split, besides the recorded one, on which what a fold needs to be constant is checked."""


def apply_action(workspace: Workspace, spec: str | None) -> None:
    """Let an object elsewhere say how the group acts, in place; it replaces the task's own actions.

    Raises:
        TaskError: if there is no task, or no such object.
    """
    if spec is not None:
        workspace.task = with_action(workspace.require_task(), spec)


def plan_for(
    workspace: Workspace, group_name: str, include: list[str], exclude: list[str]
) -> tuple[Plan, dict[str, ErrorSummary]]:
    """Return the plan and the model's own equivariance error per component; empty if the task cannot tell.

    Raises:
        CheckFailedError: if the group is measurably not the model's symmetry.
        PlanError: if nothing can be relaxed or a pattern matches nothing.
    """
    group, task = parse_group(group_name), workspace.task
    if task is None:
        return select(find(workspace.model, group), include, exclude), {}
    errors = own_errors(workspace, group) if can_act(task.task) else {}
    batch = to_dtype(sample_batches(task, 1)[0], model_dtype(workspace.model))
    acting = callable(getattr(task.task, "act", None))
    symmetry = task_symmetry(task.task, group) if acting else None
    plan = find(
        workspace.model,
        group,
        batch,
        forward=lambda model, x: task_forward(task.task, model, x),
        further=[(to_dtype(more, model_dtype(workspace.model)),) for more in _further_batches(task)],
        act=symmetry.act if symmetry else None,
        act_output=symmetry.act_output if symmetry else None,
        twin=workspace.double(workspace.model).eval() if acting and workspace.runs_in_double else None,
    )
    return select(plan, include, exclude), errors


def _further_batches(task: LoadedTask) -> list[Any]:
    """Return a few more batches of both splits; an inspection needs no training data."""
    found = sample_batches(task, FURTHER + 1)[1:]
    try:
        found += itertools.islice(task_batches(task.task, "train", 0), FURTHER)
    except TaskError:
        return found
    return found


def own_errors(workspace: Workspace, group: Group) -> dict[str, ErrorSummary]:
    """Measure the model's equivariance error, in its own dtype; whether it is small enough, ``find`` judges.

    Raises:
        TaskError: if the task's action fails.
    """
    return task_equivariance(workspace.model, workspace.require_task(), group, MeasureSettings(2, 1))


def breaks_of(workspace: Workspace, group_name: str) -> Breaks:
    """Look for the first op at which a model's equivariance fails.

    Raises:
        TaskError: if no task says how the group acts.
    """
    group, task = parse_group(group_name), workspace.require_task()
    if not can_act(task.task):
        raise TaskError(
            "expected a task with `act` and `act_output` to look for breaks with, got one without: add them"
        )
    batch = to_dtype(sample_batches(task, 1)[0], torch.float64)
    twin = workspace.double(workspace.model).eval()
    with default_dtype(torch.float64):
        return find_breaks(twin, task_symmetry(task.task, group), batch)


def picture_of(workspace: Workspace, plan: Plan) -> str:
    """Return an SVG of the model's graph with the sites marked.

    Raises:
        TaskError: if there is no task to run the model with.
    """
    task = workspace.require_task()
    batch = to_dtype(sample_batches(task, 1)[0], model_dtype(workspace.model))
    with in_training_mode(workspace.model):
        recording = record(workspace.model, batch, forward=lambda model, x: task_forward(task.task, model, x))
    return model_picture(recording, plan)


def read_plan(path: Path, group_name: str | None) -> Plan:
    """Read a plan that was written by ``surgeon inspect --plan``, and perhaps edited.

    Raises:
        PlanError: if it is no plan, or of another group than the one that was asked for.
        TrustError: if its group is code that the user does not name.
    """
    plan = Plan.from_data(read_json(path))
    refuse_named_code(plan.group, plan.group == group_name, repr(str(path)), f"`--group {plan.group}`")
    if group_name is not None and parse_group(group_name).name != parse_group(plan.group).name:
        raise PlanError(
            f"expected a plan for {parse_group(group_name).name}, but {str(path)!r} was made for {plan.group}: "
            "leave out --group, or make a new plan with `surgeon inspect --plan`"
        )
    return plan
