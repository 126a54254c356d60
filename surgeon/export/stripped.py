"""A stripped model beside its original: what every further format is written from and checked against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.export.deviation import RELATIVE
from surgeon.opening.task_calls import can_act
from surgeon.opening.workspace import Workspace
from surgeon.plan import Task
from surgeon.support.modes import model_dtype


@dataclass(frozen=True)
class Stripped:
    """A model without branches, and everything that a file made from it is compared with.

    Attributes:
        model: the stripped model, or one with the weights of a clean folder.
        original: the same architecture with the weights of the original checkpoint.
        double: the stripped model in float64, the yardstick of its rounding; itself if it does not run in float64.
        task: batches, call and action of the group.
        group: None if the task does not say how it acts.
    """

    model: nn.Module
    original: nn.Module
    double: nn.Module
    task: Task
    group: Group | None = None

    @property
    def relative(self) -> float:
        """The share of an output's largest entry by which another program may always differ; more without float64."""
        dtype = model_dtype(self.double)
        return RELATIVE if dtype == torch.float64 else 1000 * torch.finfo(dtype).eps


def stripped_beside_original(workspace: Workspace, model: nn.Module) -> Stripped:
    """Return a workspace's stripped model with a fresh original, its float64 twin, the task and the plan's group.

    Raises:
        TaskError: if no task is known.
    """
    task, relaxation = workspace.require_task().task, workspace.relaxation
    acts = relaxation is not None and can_act(task)
    group = relaxation.plan.group_object if relaxation is not None and acts else None
    return Stripped(model, workspace.reference[0], workspace.double_or_own(model), task, group)
