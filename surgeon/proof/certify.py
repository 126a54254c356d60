"""Compare a stripped model with its original in everything that model, task and group allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.opening.evaluation import evaluate_each
from surgeon.opening.pairs import Pairs
from surgeon.opening.task_calls import task_forward
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import Certificate, Split
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.architecture import compare_models
from surgeon.proof.equivariance import compare_equivariance
from surgeon.proof.verdict import ModelVerdict
from surgeon.support.modes import model_dtype
from surgeon.support.trees import to_dtype


def certify(before: nn.Module, after: nn.Module, run: Callable[[nn.Module], Any] | None = None) -> Certificate:
    """Compare two models in everything but the values of their parameters, which only have to be finite.

    Args:
        before: the original model, without branches.
        after: the stripped model.
        run: one forward on a sample batch, ``run(model)``; without it the recorded graphs are not compared and every
            changed buffer counts as a difference.

    Returns:
        The certificate; ``passed`` is the verdict, ``grade`` says how much was shown ("same form" without a run, else
        "same graph"), ``differences`` say in words what is not as it was.
    """
    return compare_models(before, after, run).certificate()


def certify_opened(
    workspace: Workspace, models: Mapping[str, nn.Module], group: Group | None, settings: MeasureSettings
) -> ModelVerdict:
    """Compare the two models of an opened path; stripping and verifying both do it here.

    Args:
        workspace: its task, if it has one, gives the forward that is recorded and the batches.
        models: "stripped", and "original" if it is known: without one the stripped model is only measured.
        group: under which equivariance is measured; None to leave that out.
    """
    verdict = ModelVerdict()
    if "original" in models:
        verdict = compare_models(models["original"], models["stripped"], _forward(workspace, models["original"]))
    if group is None:
        return verdict
    found = compare_equivariance(workspace, models, group, settings)
    return verdict.joined(*found.findings, equivariance=found.equivariance, details=found.details)


def _forward(workspace: Workspace, model: nn.Module) -> Callable[[nn.Module], Any] | None:
    """Return the forward on the first validation batch; None without a task."""
    if workspace.task is None:
        return None
    task, batch = workspace.task.task, to_dtype(sample_batches(workspace.task, 1)[0], model_dtype(model))
    return lambda network: task_forward(task, network, batch)


def metrics_of(
    workspace: Workspace, models: Mapping[str, nn.Module], split: Split, pairs: dict[str, Any] | None = None
) -> dict[str, dict[str, float]]:
    """Return the task's metrics of every model on a split; none without a task.

    Args:
        pairs: filled by model with the task's pairs of computed values and labels, see :class:`Pairs`.
    """
    if workspace.task is None:
        return {}
    seen = {name: Pairs(workspace.task.task) for name in ({} if pairs is None else models)}
    metrics = evaluate_each(models, workspace.task.task, split, {name: each.see for name, each in seen.items()})
    if pairs is not None:
        pairs |= {name: found for name, each in seen.items() if (found := each.found())}
    return metrics


def probed(workspace: Workspace, models: Mapping[str, nn.Module], split: Split | None) -> dict[str, Any]:
    """Return what was measured on other data, as a certificate's details hold it; nothing without probes."""
    chosen = split or "test"
    found = {
        name: {"sha256": probe.sha256, "split": chosen, "metrics": evaluate_each(models, probe.task, chosen)}
        for name, probe in workspace.probes.items()
    }
    return {"probes": found} if found else {}
