"""Let the task adjust a checkpoint before it is trained, so that training, certificate and files all see the same."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from surgeon.editing.adjust import Adjustments, adjust, require_allowed
from surgeon.errors import TaskError
from surgeon.opening.open import bound, with_further_arguments
from surgeon.opening.tasks import load_task
from surgeon.opening.workspace import Workspace


def adjusted(workspace: Workspace) -> tuple[Workspace, tuple[str, ...]]:
    """Change in an opened checkpoint, in place, what its task asks for, and let the task see the model anew.

    A task may have ``adjustments(model)``, which returns :class:`surgeon.editing.adjust.Adjustments` or None,
    ``adjustable(model)``, the names of the tensors that may be changed, and ``remarks(model)``, sentences that the user
    should know of its data. What a relaxed folder was made with is recorded there, and nothing is asked.

    Returns:
        The workspace with what was changed, if anything was, and what the task says, in sentences.

    Raises:
        TaskError: if the task changes what it does not say it may, or refuses the data.
        CheckpointError: if an entry that it names is not there.
    """
    task = workspace.task
    if task is None or workspace.adjustments is not None or workspace.files is not None:
        return workspace, ()
    told = tuple(f"note: {remark}" for remark in _asked(task.task, "remarks", workspace.model) or ())
    found = _asked(task.task, "adjustments", workspace.model)
    if found is None:
        return workspace, told
    if not isinstance(found, Adjustments):
        raise TaskError(f"expected the task's adjustments(model) to return Adjustments, got {type(found).__name__}")
    if not found:
        return workspace, (*told, found.sentence)
    require_allowed(found, workspace.adjustable())
    adjust(workspace.model, found)
    options = dataclasses.replace(with_further_arguments(workspace.options, found), adjustments=found)
    if found.arguments:
        task = load_task(task.path or task.spec, {**task.arguments, **found.arguments})
    rebound = bound(task, workspace.model, options, workspace.path)
    changed = dataclasses.replace(workspace, options=options, task=rebound, adjustments=found, twin=None)
    return changed, (*told, found.sentence)


def _asked(task: Any, member: str, model: nn.Module) -> Any:
    ask = getattr(task, member, None)
    return None if ask is None else ask(model)
