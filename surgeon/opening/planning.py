"""Find the sites of an opened checkpoint, or read a plan."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.select import select
from surgeon.errors import NotASymmetryError, PlanError, TaskError
from surgeon.files.content import read_json
from surgeon.finding.annotated_ops import collect_proposals
from surgeon.finding.find import find
from surgeon.finding.own_symmetry import symmetry_complaint
from surgeon.opening.task_calls import can_act, task_batches, task_forward, task_symmetry
from surgeon.opening.tasks import LoadedTask, planning_batches, sample_batches
from surgeon.opening.trust import refuse_named_code
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan
from surgeon.registry import installed_adapters
from surgeon.support.modes import in_evaluation_mode, model_dtype
from surgeon.support.stages import Stages
from surgeon.support.trees import to_dtype

DEFAULT_GROUP = "O3"
"""Taken where the user gives no group; that of its rotations if only these are a symmetry."""

FURTHER = 1
"""Batches per split, besides the recorded one, on which what a fold needs to be constant is checked."""


def plan_for(
    workspace: Workspace, group_name: str | Group | None, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Plan:
    """Return the plan for an opened checkpoint; without a group under O3, or under SO3 if only that is a symmetry.

    Raises:
        CheckFailedError: if the group is measurably not the model's symmetry.
        PlanError: if nothing can be relaxed or a pattern matches nothing.
    """
    plan = _under_group(workspace, group_name, _found)
    plan = dataclasses.replace(plan, notes=(*workspace.found.notes, *plan.notes))  # what is known of how it was opened
    return select(plan, include, exclude)


def _under_group(
    workspace: Workspace, group_name: str | Group | None, planned: Callable[[Workspace, Group, bool], Plan]
) -> Plan:
    """Plan under the group that the user gave; else under O3, and if only rotations hold say so and go on under SO3."""
    if group_name is not None:
        return planned(workspace, parse_group(group_name), False)
    try:
        return planned(workspace, parse_group(DEFAULT_GROUP), True)
    except NotASymmetryError as error:
        if error.complaint.holds is None:
            raise
        words = error.complaint.going_on
        if workspace.options.stage is not None:
            workspace.options.stage(words)
        plan = planned(workspace, parse_group(error.complaint.holds), False)
        return dataclasses.replace(plan, notes=(words, *plan.notes))


def _found(workspace: Workspace, group: Group, narrows: bool) -> Plan:
    task, stages = workspace.task, Stages(workspace.options.stage)
    if task is None:
        return find(workspace.model, group)
    dtype = model_dtype(workspace.model)
    acting = callable(getattr(task.task, "act", None))
    symmetry = task_symmetry(task.task, group) if acting else None
    twin = workspace.double(workspace.model).eval() if acting and workspace.runs_in_double else None
    stages("built it again in float64" if twin is not None else "drew a batch")
    batch, further = _batches(task)
    return find(
        workspace.model,
        group,
        to_dtype(batch, dtype),
        forward=lambda model, x: task_forward(task.task, model, x),
        further=[(to_dtype(more, dtype),) for more in further],
        act=symmetry.act if symmetry else None,
        act_output=symmetry.act_output if symmetry else None,
        twin=twin,
        stage=stages,
        narrows=narrows,
    )


def empty_plan(workspace: Workspace, group_name: str | Group | None) -> Plan:
    """Return a plan without sites: the group that certificates are about, which has to be the model's symmetry.

    Without a group it is O3, or SO3 if only that is a symmetry.

    Raises:
        NotASymmetryError: if it measurably is not, as far as the task says how it acts.
    """
    return _under_group(workspace, group_name, _empty)


def _empty(workspace: Workspace, group: Group, _: bool) -> Plan:
    model, plan = workspace.model, Plan(group.name, (), notes=workspace.found.notes)
    if workspace.task is None or not can_act(workspace.task.task):
        return plan
    batch = to_dtype(sample_batches(workspace.task, 1)[0], model_dtype(model))
    proposals = collect_proposals(model, group, installed_adapters())[0]
    with in_evaluation_mode(model):
        complaint = symmetry_complaint(model, task_symmetry(workspace.task.task, group), (batch,), None, proposals)
    if complaint is not None:
        raise NotASymmetryError(complaint.words, plan, complaint)
    return plan


def _batches(task: LoadedTask) -> tuple[Any, list[Any]]:
    """Return the batch to measure on, and a few more of both splits; an inspection needs no training data."""
    batch, further = planning_batches(task, FURTHER)
    try:
        return batch, [*further, *itertools.islice(task_batches(task.task, "train", 0), FURTHER)]
    except TaskError:
        return batch, further


def read_plan(path: str | Path, group_name: str | None, flag: str = "`--group {}`") -> Plan:
    """Read a plan that was written by ``surgeon inspect --plan``, and perhaps edited.

    Args:
        group_name: what the user says of the group; None for nothing.
        flag: how the user would say it, with a place for the group.

    Raises:
        PlanError: if it is no plan, or of another group than the one that was asked for.
        TrustError: if its group is code that the user does not name.
        UsageError: if it cannot be read.
    """
    plan = Plan.from_data(read_json(path))
    refuse_named_code(plan.group, plan.group == group_name, repr(str(path)), flag.format(plan.group))
    require_group(plan, group_name, repr(str(path)))
    return plan


def require_group(plan: Plan, group_name: str | None, where: str) -> None:
    """Refuse a plan for another group than the one that was asked for.

    Raises:
        PlanError: naming both.
    """
    if group_name is not None and parse_group(group_name).name != parse_group(plan.group).name:
        raise PlanError(
            f"expected a plan for {parse_group(group_name).name}, but {where} was made for {plan.group}: leave the "
            "group out, or make a new plan with `surgeon inspect --plan`"
        )
