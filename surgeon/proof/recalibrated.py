"""Measure statistics of normalisation layers anew that training has gathered with relaxed equivariance."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from torch import nn

from surgeon.editing.recalibration import gathered_since, layers_with_statistics, recalibrate, running_statistics
from surgeon.errors import SurgeonError, TaskError
from surgeon.opening.evaluation import evaluate, fitted, is_better
from surgeon.opening.task_calls import primary_metric, task_batches, task_forward
from surgeon.opening.workspace import Workspace
from surgeon.support.imports import one_line


def recalibrate_gathered(workspace: Workspace, original: nn.Module, at_most: int, seed: int) -> dict[str, Any] | None:
    """Recalibrate the layers whose statistics training has gathered; None if the model has no such layers at all.

    Args:
        workspace: its model is stripped, and edited in place.
        original: the same architecture with the original's statistics.
        at_most: training batches to take; 0 leaves the statistics as they are.
        seed: of the order of the batches.

    Returns:
        JSON-compatible: ``done`` and ``why`` not; or the number of batches, the primary validation metric before and
        after, and per layer what :class:`StatisticsChange` says.
    """
    model, task = workspace.model, workspace.task
    if not layers_with_statistics(model):
        return None
    gathered = gathered_since(model, running_statistics(original))
    if not gathered:
        return {"done": False, "why": "they are those of the original"}
    if workspace.relaxation is not None and not workspace.relaxation.plan.sites:
        return {"done": False, "why": "there were no branches, so training gathered them on the network itself"}
    if at_most == 0:
        return {"done": False, "why": "it was switched off; they are those that training gathered"}
    if task is None:
        return {"done": False, "why": "no task is known, so there are no training batches: give `--task FILE`"}
    try:
        batches = itertools.islice(task_batches(task.task, "train", seed), at_most)
    except TaskError as error:
        return {"done": False, "why": str(error)}
    metric, direction = primary_metric(task.task)
    before, used = evaluate(model, task.task, "validation").get(metric, math.nan), 0

    def forward(model: nn.Module, batch: Any) -> None:
        nonlocal used
        used += 1
        task_forward(task.task, model, fitted(batch, model))

    try:
        changes = recalibrate(model, batches, forward, gathered)
    except SurgeonError:
        raise
    except Exception as error:
        raise TaskError(
            f"expected training batches on which normalisation statistics can be recalibrated, but the forward fails "
            f"with {one_line(error)}: correct the task, or give `--no-recalibrate`"
        ) from error
    after = evaluate(model, task.task, "validation").get(metric, math.nan)
    layers = {change.name: dataclasses.asdict(change) for change in changes}
    reasons = dict.fromkeys(change.note for change in changes)
    if "" not in reasons:
        return {"done": False, "why": "; ".join(reasons), "layers": layers}
    return {
        "done": True,
        "batches": used,
        "metric": metric,
        "before": before,
        "after": after,
        "worse": is_better(before, after, direction),
        "layers": layers,
    }
