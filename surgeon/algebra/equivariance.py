"""A group's actions on both ends of a network, and how far that is from equivariance (section 5 of the paper)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group, GroupElement
from surgeon.errors import TaskError, first_line
from surgeon.support.trees import as_pairs, fresh_copy, map_tensors, tensors_in

ACTION_TOLERANCE = 1e-6
"""Relative deviation of what the user calls an action from one; user code may round to float32."""

RANDOM = 3
"""Random elements per component whose products are compared, see :meth:`Group.test_elements`."""


def call(model: Callable[..., Any], *inputs: Any) -> Any:
    """Return what a model makes of its inputs."""
    return model(*inputs)


@dataclass(frozen=True)
class Symmetry:
    """A group with its actions on both ends of a model; g is an element, shape (k, k), float64.

    Attributes:
        act: ``act(g, *inputs)`` returns what the model is given in place of the inputs: of one input its image, of
            several a tuple of images.
        act_output: ``act_output(g, outputs)``; None if it is not known.
        forward: ``forward(model, *inputs)``.
    """

    group: Group
    act: Callable[..., Any]
    act_output: Callable[[Tensor, Any], Any] | None = None
    forward: Callable[..., Any] = call

    def moved(self, g: Tensor, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the inputs under g.

        Raises:
            TaskError: if the action fails, or returns something else than inputs.
        """
        try:
            found = self.act(g, *inputs)
        except Exception as error:
            raise TaskError(
                f"the action on the sample batch fails with {type(error).__name__}: {first_line(error)}; correct "
                f"act(g, batch), where g is a {self.group.dimension} x {self.group.dimension} matrix in float64"
            ) from error
        several = isinstance(found, tuple)
        if len(inputs) == 1 and (not several or isinstance(inputs[0], tuple)):
            return (found,)
        if len(inputs) == 1 or not several or len(found) != len(inputs):
            expected = "the moved batch itself" if len(inputs) == 1 else f"a tuple of {len(inputs)} moved inputs"
            got = f"a tuple of {len(found)}" if several else type(found).__name__
            raise TaskError(f"expected act(g, *inputs) to return {expected}, got {got}: correct act")
        return tuple(found)

    def expected(self, g: Tensor, outputs: Any) -> Any:
        """Return what the outputs have to be on inputs that g moves.

        Raises:
            TaskError: if there is no ``act_output``, or it fails.
        """
        if self.act_output is None:
            raise TaskError("expected act_output(g, outputs), which says how the model's outputs transform: add it")
        try:
            return self.act_output(g, outputs)
        except Exception as error:
            raise TaskError(
                f"act_output fails on the model's output with {type(error).__name__}: {first_line(error)}; correct "
                "act_output(g, outputs)"
            ) from error

    def run(self, model: Any, inputs: tuple[Any, ...], g: Tensor | None = None) -> Any:
        """Return the outputs on copies of the inputs, which a model may write to, or of what g makes of them."""
        given = inputs if g is None else self.moved(g, inputs)
        return self.forward(model, *map_tensors(fresh_copy, given))

    def errors(self, outputs: Any, moved: Iterable[tuple[GroupElement, Any]]) -> dict[str, float]:
        """Return the largest relative error per component of ``moved``, the outputs on inputs under some elements.

        Args:
            outputs: those on the inputs as they are.
            moved: elements and outputs.

        Returns:
            Component name to error; nothing if ``act_output`` is not known.
        """
        found: dict[str, float] = {}
        for (_, component, g), output in () if self.act_output is None else moved:
            error = relative_difference(output, self.expected(g, outputs))
            found[component] = largest(found.get(component, 0.0), error)
        return found

    def check(self, inputs: tuple[Any, ...], generator: torch.Generator) -> None:
        """Check on sample inputs that the action is one: ``e x = x``, ``g (h x) = (g h) x``, and something moves.

        Raises:
            TaskError: if it is not, with what was measured.
        """
        tested = [element.g for element in self.group.test_elements(generator, RANDOM)]
        identity = torch.eye(self.group.dimension, dtype=torch.float64)
        still = relative_difference(self.moved(identity, inputs), inputs)
        # Squares too: elements that are rounded, to quarter turns say, often add up with another one.
        pairs = [*zip(tested, [*tested[1:], tested[0]], strict=True), *zip(tested, tested, strict=True)]
        twice = self._twice(inputs, pairs, lambda g, h: g @ h)
        if not still <= ACTION_TOLERANCE or twice > ACTION_TOLERANCE:
            reversed_order = twice > ACTION_TOLERANCE >= self._twice(inputs, pairs, lambda g, h: h @ g)
            what = (
                f"acting by h and then by g differs from acting by gh by {twice:.1e}"
                if still <= ACTION_TOLERANCE
                else f"the identity changes the batch by {still:.1e}"
            )
            raise TaskError(
                f"expected act to be an action of {self.group.name}, but {what} (relative)"
                f"{': it is acting by hg, and would be one with g^-1 or g^T in place of g' if reversed_order else ''}: "
                "correct act(g, batch); for row vectors it is x @ g.T"
            )
        if not any(relative_difference(self.moved(g, inputs), inputs) > ACTION_TOLERANCE for g in tested):
            raise TaskError(
                f"expected act to move the sample batch, but no element of {self.group.name} changes it: correct "
                "act(g, batch), or give batches that are not invariant"
            )

    def _twice(
        self, inputs: tuple[Any, ...], pairs: Sequence[tuple[Tensor, Tensor]], product: Callable[..., Tensor]
    ) -> float:
        """Return how far acting by h and then by g is from acting by a product of the two."""
        worst = 0.0
        for g, h in pairs:
            error = relative_difference(self.moved(g, self.moved(h, inputs)), self.moved(product(g, h), inputs))
            worst = largest(worst, error)
        return worst


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
    return [leaf.detach() for leaf in map(as_pairs, tensors_in(tree)) if leaf.is_floating_point()]


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
    model: Any,
    samples: Sequence[tuple[Any, ...]],
    symmetry: Symmetry,
    *,
    count: int = 8,
    seed: int = 0,
    watch: Callable[[str, int, Any, Any], None] | None = None,
) -> dict[str, ErrorSummary]:
    """Measure ``|f(g x) - g f(x)| / |g f(x)|`` under the group's test elements.

    A change of scale moves new points into the frame of an image, of which f(x) says nothing: they are left out.

    Args:
        model: the network; gradients stay enabled, since some models return derivatives.
        samples: inputs of sample calls; each is paired with test elements of its own, see :meth:`Group.test_elements`.
        symmetry: the group, its actions, and how the model is run.
        count: random elements per component and sample.
        seed: seed of the elements.
        watch: called for every element with component, number of the sample, outputs, and what they should be.

    Returns:
        Component name to the distribution of relative errors; of a finite group, the name of each generator.

    Raises:
        TaskError: if there is no sample or no element, an action fails, or outputs cannot be compared.
    """
    if not samples or count < 1:
        raise TaskError(
            f"expected at least one batch and one element, got {len(samples)} and {count}: nothing to measure"
        )
    generator = torch.Generator().manual_seed(seed)
    outputs = [map_tensors(Tensor.detach, symmetry.run(model, inputs)) for inputs in samples]
    errors: dict[str, list[float]] = defaultdict(list)
    labels: dict[str, list[str]] = defaultdict(list)
    for number, (inputs, output) in enumerate(zip(samples, outputs, strict=True)):
        for label, component, g in symmetry.group.test_elements(generator, count):
            moved = map_tensors(Tensor.detach, symmetry.run(model, inputs, g))
            expected = symmetry.expected(g, output)
            moved = _covered(moved, expected) if symmetry.group.rescales else moved
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
        maximum: the largest; what a verdict goes by, since a network may be broken under a few elements only.
        worst: the group element of the largest one, in words.
    """

    mean: float
    median: float
    maximum: float
    count: int
    worst: str = ""
