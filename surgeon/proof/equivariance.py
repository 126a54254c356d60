"""The equivariance error of a network on its task's batches, and when a result's counts as its original's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from surgeon.algebra.equivariance import ErrorSummary, equivariance_error
from surgeon.algebra.groups.core import Group
from surgeon.editing.relaxation import Relaxation
from surgeon.opening.task_calls import task_symmetry
from surgeon.opening.tasks import LoadedTask, sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import EQUIVARIANCE_CHECK
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.rounding import LEVEL, RowErrors, can_exclude_chance, chance_of
from surgeon.proof.verdict import Equivariance, ModelVerdict, compared
from surgeon.support.modes import in_evaluation_mode, model_dtype
from surgeon.support.trees import to_dtype

OWN_DTYPE_BATCHES = 8
"""Batches to measure equivariance on, at least, where only a dtype with coarse rounding can tell."""

AS_EQUIVARIANT = 10.0
"""The stripped model's equivariance errors may exceed the original's by this factor (both are rounding noise)."""

FLOOR = {"float64": 1e-10}
"""Equivariance errors that are never held against a model, by dtype; 1e-5 in any other."""


@contextmanager
def at_full_relaxation(relaxation: Relaxation) -> Iterator[None]:
    """Set theta to 1 while the context is open: at the end of a training it is 0, where there is nothing to see."""
    before = relaxation.thetas
    relaxation.set_theta(1.0)
    try:
        yield
    finally:
        relaxation.set_thetas(before)


def largest_allowed(original: float, dtype: str) -> float:
    """Return up to which error a result counts as equivariant as its original; of largest errors, dimensionless."""
    return max(AS_EQUIVARIANT * original, FLOOR.get(dtype, 1e-5))


def task_equivariance(
    model: nn.Module,
    task: LoadedTask,
    group: Group,
    settings: MeasureSettings,
    watch: Callable[[str, int, Any, Any], None] | None = None,
) -> dict[str, ErrorSummary]:
    """Measure a model's equivariance error on validation batches, in eval mode and in its own dtype.

    Args:
        watch: as in :func:`equivariance_error`.
    """
    samples = [(to_dtype(batch, model_dtype(model)),) for batch in sample_batches(task, settings.batches)]
    symmetry = task_symmetry(task.task, group)
    with in_evaluation_mode(model):
        return equivariance_error(model, samples, symmetry, count=settings.elements, seed=settings.seed, watch=watch)


def both_precisions(
    workspace: Workspace,
    model: nn.Module,
    group: Group,
    settings: MeasureSettings,
    rows: dict[str, RowErrors] | None = None,
) -> dict[str, dict[str, ErrorSummary]]:
    """Measure in the model's own dtype and, where the network runs in it, float64: dtype to component to summary.

    Args:
        workspace: what builds the float64 twin.
        settings: how much to measure; without float64 more batches are taken.
        rows: filled with the rows of the model's own dtype, component by component, unless that is float64.
    """
    task = workspace.require_task()
    own = str(model_dtype(model)).removeprefix("torch.")
    exact = own == "float64" or workspace.runs_in_double
    more = settings if exact else dataclasses.replace(settings, batches=max(settings.batches, OWN_DTYPE_BATCHES))

    def watch(component: str, batch: int, moved: Any, expected: Any) -> None:
        if rows is not None and own != "float64":
            rows.setdefault(component, RowErrors()).add(batch, moved, expected)

    result = {own: task_equivariance(model, task, group, more, watch)}
    if own != "float64" and workspace.runs_in_double:
        result["float64"] = task_equivariance(workspace.double(model), task, group, settings)
    return result


def compare_equivariance(
    workspace: Workspace, models: Mapping[str, nn.Module], group: Group, settings: MeasureSettings
) -> ModelVerdict:
    """Measure models in both precisions, and judge "stripped" by "original" if that is among them.

    Args:
        workspace: task, and what builds float64 twins.
        models: "stripped", and "original" if it is known.
    """
    rows: dict[str, dict[str, RowErrors]] = {name: {} for name in models}
    found = {name: both_precisions(workspace, model, group, settings, rows[name]) for name, model in models.items()}
    if "original" not in found:
        return ModelVerdict(equivariance=found)
    how = f"{settings.batches} batches, {settings.elements} elements, seed {settings.seed}"
    finding, flipped = compared(EQUIVARIANCE_CHECK, less_equivariant(found, rows), how), flipped_rows(rows)
    return ModelVerdict((finding,), equivariance=found, details={"flipped rows": flipped} if flipped else {})


def less_equivariant(
    equivariance: Equivariance, rows: Mapping[str, Mapping[str, RowErrors]] | None = None
) -> list[str]:
    """Say where the error of "stripped" is above the original's: dtype by dtype, component by component.

    In float64 the maxima over all elements and batches are compared. In any other dtype ties of discrete choices fall
    by chance: distributions of rows are compared, and only what chance cannot explain counts. If there are too few rows
    for that, float64 alone decides, and where there is none, the maxima.

    Args:
        equivariance: of "original" and "stripped".
        rows: of the same two, component to rows in the models' own dtype.
    """
    found = []
    for dtype, components in equivariance["original"].items():
        floor = FLOOR.get(dtype, 1e-5)
        for component, before in components.items():
            after = equivariance["stripped"][dtype][component]
            own = (rows or {}).get("original", {}).get(component) if dtype != "float64" else None
            if rows and own is not None and can_exclude_chance(own):
                chance = chance_of(own, rows["stripped"][component], AS_EQUIVARIANT, floor)
                worse, how = chance < LEVEL, f", which chance explains with a probability of {chance:.0e} only"
            elif dtype != "float64" and "float64" in equivariance["original"]:
                continue
            else:
                worse, how = not after.maximum <= largest_allowed(before.maximum, dtype), ""
            if worse:
                by = f" (by {after.worst})" if after.worst else ""
                found.append(
                    f"equivariance error under {component} in {dtype}: expected about {before.maximum:.1e} at most as "
                    f"in the original, got {after.maximum:.1e}{by}{how}"
                )
    return found


def flipped_rows(rows: Mapping[str, Mapping[str, RowErrors]]) -> dict[str, Any]:
    """Return how many rows of the outputs were flipped, JSON-compatible: component to model to ``[flipped, of]``."""
    return {
        component: {model: list(rows[model][component].flipped()) for model in rows} for component in rows["original"]
    }
