"""Equivariance error and projection error of a network (section 5 of the paper: P_ee and P_pe)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.errors import TaskError
from surgeon.support.trees import map_tensors, tensors_in


def relative_difference(left: Any, right: Any) -> float:
    """Return the largest ``|left - right| / |right|`` over the floating tensors of two outputs; dimensionless.

    Each tensor is compared by itself, so that a large invariant output (a total energy) does not hide what happens to a
    small one (forces). A tensor of rounding size, 100 machine epsilons, counts as of that size.

    Args:
        left: a tensor, or a nest of tensors.
        right: the reference, of the same structure.

    Raises:
        TaskError: if the two have different numbers or shapes of tensors.
    """
    first, second = _floating(left), _floating(right)
    shapes, others = ([tuple(tensor.shape) for tensor in tensors] for tensors in (first, second))
    if not shapes or shapes != others:
        raise TaskError(
            f"expected two outputs with the same floating tensors, got shapes {shapes} and {others}: "
            "check act_output of the task"
        )
    ratios = [_ratio(a, b) for a, b in zip(first, second, strict=True)]
    return math.nan if any(math.isnan(ratio) for ratio in ratios) else max(ratios)


def _ratio(left: Tensor, right: Tensor) -> float:
    floor = 100 * torch.finfo(right.dtype).eps * math.sqrt(right.numel())
    difference = float((left.double() - right.double()).norm())
    return difference / max(float(right.double().norm()), floor) if right.numel() else 0.0


def _floating(tree: Any) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors_in(tree) if tensor.is_floating_point()]


def largest(first: float, second: float) -> float:
    """Return the larger of two errors; infinity if one is not finite, which ``max`` may pass over."""
    return max(first, second) if math.isfinite(first) and math.isfinite(second) else math.inf


def summarise(errors: Sequence[float], labels: Sequence[str] = ()) -> ErrorSummary:
    """Return mean, median, maximum and count of relative errors; a non-finite one makes mean and maximum infinite.

    Args:
        errors: at least one.
        labels: of which element each is; the summary names the first with the largest error.
    """
    cleaned = [error if math.isfinite(error) else math.inf for error in errors]
    maximum = max(cleaned)
    worst = labels[cleaned.index(maximum)] if labels else ""
    return ErrorSummary(statistics.fmean(cleaned), statistics.median(cleaned), maximum, len(cleaned), worst)


def equivariance_error(
    function: Callable[[Any], Any],
    batches: Sequence[Any],
    act: Callable[[Tensor, Any], Any],
    act_output: Callable[[Tensor, Any], Any],
    group: Group,
    *,
    count: int = 8,
    seed: int = 0,
    watch: Callable[[str, int, Any, Any], None] | None = None,
) -> dict[str, ErrorSummary]:
    """Measure ``|f(g x) - g f(x)| / |g f(x)|`` under the group's test elements.

    A change of scale moves new points into the frame of an image, of which f(x) says nothing: they are left out.

    Args:
        function: the network, from a batch to outputs; gradients stay enabled, since some models return derivatives.
        batches: sample batches; each is paired with test elements of its own, see :meth:`Group.test_elements`.
        act: the group's action on a batch, ``act(g, batch)``, g of shape (k, k) in float64.
        act_output: the group's action on the outputs.
        group: the group to sample from.
        count: random elements per component and batch.
        seed: seed of the elements.
        watch: called for every element with component, number of the batch, outputs, and what they should be.

    Returns:
        Component name to the distribution of relative errors; of a finite group, the name of each generator.

    Raises:
        TaskError: if there is no batch or no element, or the outputs of a batch cannot be compared.
    """
    if not batches or count < 1:
        raise TaskError(
            f"expected at least one batch and one element, got {len(batches)} and {count}: nothing to measure"
        )
    generator = torch.Generator().manual_seed(seed)
    outputs = [map_tensors(Tensor.detach, function(batch)) for batch in batches]
    errors: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, list[str]] = defaultdict(list)
    for number, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        for label, component, g in group.test_elements(generator, count):
            moved = map_tensors(Tensor.detach, function(act(g, batch)))
            expected = act_output(g, output)
            moved = _covered(moved, expected) if group.rescales else moved
            errors[component].append(relative_difference(moved, expected))
            labels[component].append(label)
            if watch is not None:
                watch(component, number, moved, expected)
    return {component: summarise(errors[component], labels[component]) for component in errors}


def _covered(moved: Any, expected: Any) -> Any:
    """Return ``moved`` with 0 where ``expected`` is exactly 0."""
    others = iter(tensors_in(expected))
    return map_tensors(lambda tensor: tensor * (next(others) != 0), moved)


def projection_error(relaxed: Sequence[Any], clean: Sequence[Any]) -> float:
    """Return the mean of ``|f(x) - f_clean(x)| / |f_clean(x)|`` over batches of outputs; dimensionless."""
    return statistics.fmean(relative_difference(a, b) for a, b in zip(relaxed, clean, strict=True))


@dataclass(frozen=True)
class ErrorSummary:
    """Distribution of relative errors over samples and group elements; dimensionless.

    Attributes:
        mean: their mean.
        median: their median.
        maximum: the largest; what a verdict goes by, since a network may be broken under a few elements only.
        count: how many there are.
        worst: the group element of the largest one, in words.
    """

    mean: float
    median: float
    maximum: float
    count: int
    worst: str = ""
