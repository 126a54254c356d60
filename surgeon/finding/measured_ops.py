"""Find sites by measurement: how the tensors at both ends of a module that is linear transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.equivariance import largest
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.forms import ConvolutionForm
from surgeon.finding.inference.hypotheses import TOLERANCE, Verdict, infer_type, residual_of
from surgeon.finding.inference.probe import Probe
from surgeon.finding.inference.propagate import type_by_use
from surgeon.finding.measurement import Measurement, perturbed
from surgeon.finding.ops import Op, Structure, linear_pairs, probe_structure, random_like
from surgeon.plan import Convolution, Site
from surgeon.recording.kernels import Kernel
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype
from surgeon.support.trees import Place, tensor_at, tensor_leaves, with_tensor

COLUMNS = 64
"""Of the matrices of two representations, so many are compared at a time."""

Pair = tuple[str, Place, Place]
"""An argument, the way to its features, and the way to what they feed in the output."""

Reader = Callable[[Mapping[str, Any], Any], Tensor]
"""Picks a tensor out of a call's arguments and result."""


@dataclass(frozen=True)
class Found:
    """One op of which both ends were measured.

    Attributes:
        type_in: how its features transform, with the copies that W mixes.
        type_out: the same for its result.
        convolution: how its kernel moves; None for a map of rows.
        residual: largest relative deviation of the op from equivariance under these types, on random features.
    """

    op: Op
    type_in: TensorType
    type_out: TensorType
    convolution: Convolution | None
    residual: float

    @property
    def invariant(self) -> bool:
        """True if neither side transforms and no kernel moves over the group's grid: every linear map is equivariant.

        A kernel of several points between scalar fields is equivariant only if the group maps it to itself.
        """
        return self.convolution is None and self.type_in.is_invariant and self.type_out.is_invariant

    def site(self) -> Site:
        """Return the site; its source is "measurement"."""
        shape: tuple[int, ...] = (self.type_out.rho.dimension, self.type_in.rho.dimension)
        if self.convolution is not None:
            shape += self.convolution.kernel
        return Site(
            name=self.op.module,
            argument=self.op.argument,
            kind="linear" if self.convolution is None else "convolution",
            adapter="",
            rho_in=self.type_in.rho,
            rho_out=self.type_out.rho,
            shape=shape,
            path_in=self.op.path_in,
            path_out=self.op.path_out,
            axes_in=self.type_in.axes,
            axes_out=self.type_out.axes,
            convolution=self.convolution,
            node=self.op.node,
            parameters=self.op.parameters,
            source="measurement",
            verified=True,
            residual=self.residual,
        )


def measure_module(measurement: Measurement, name: str, kernels: Sequence[Kernel]) -> list[Found] | Refusal:
    """Measure a module as an op.

    Args:
        measurement: runs in which the module's calls were kept.
        kernels: the convolutions that were recorded inside it.

    Returns:
        What was found, one entry per argument that takes a branch; or why it is no equivariant linear op, in words.
    """
    calls = measurement.own.calls(name)
    measurement.changed.calls(name)  # here, where the weights are as they should be
    if not calls[0] or any(len(more) != len(calls[0]) for more in calls):
        if not calls[0]:
            return Refusal("never called on the sample batch", "unused")
        return Refusal("how often it is called depends on the input", "unexplained")
    generator, arguments = torch.Generator().manual_seed(0), measurement.few(name, calls[0][0][0])
    with torch.no_grad(), default_dtype(torch.float64), perturbed(measurement.twin, inside=name):
        pairs = linear_pairs(measurement.twin, name, arguments, generator)
    if isinstance(pairs, Refusal):
        return pairs
    chosen = _features(measurement, name, pairs)
    if isinstance(chosen, Refusal):
        return chosen
    results = [measure_op(measurement, Op(name, *pair), kernels) for pair in chosen]
    found = [result for result in results if not isinstance(result, Refusal)]
    return found or next(result for result in results if isinstance(result, Refusal))


def _features(measurement: Measurement, name: str, pairs: list[Pair]) -> list[Pair] | Refusal:
    """Choose, of the arguments in which an op is linear, those that are its features.

    These are what trained weights have had an influence on already; attributes of edges and nodes come straight from
    the data. Of several in which the op is linear only with the others fixed, one is kept.
    """
    own, changed = (probe.first[name][0][0] for probe in (measurement.own, measurement.changed))
    influenced = {
        (argument, path)
        for argument, value in own.items()
        for path, tensor in tensor_leaves(value).items()
        if not torch.equal(tensor, tensor_at(changed[argument], path))
    }
    features = [pair for pair in pairs if (pair[0], pair[1]) in influenced]
    if influenced and not features:
        linear = ", ".join(dict.fromkeys(pair[0] for pair in pairs))
        return Refusal(
            f"it is linear in {linear} only, which no weights have acted on, not in its features", "not linear"
        )
    if len(pairs) > 1 and not _jointly_linear(measurement, name, pairs):
        return (features or pairs)[:1]
    return features or pairs


def _jointly_linear(measurement: Measurement, name: str, pairs: list[Pair]) -> bool:
    """Tell whether an op is a sum of maps of its arguments; a product of two is not."""
    generator = torch.Generator().manual_seed(1)
    arguments = measurement.few(name, measurement.own.first[name][0][0])
    twin = measurement.twin
    first, second = (Op(name, *pair) for pair in pairs[:2])
    x, y = (random_like(op.read_in(twin, arguments), generator) for op in (first, second))
    zero = torch.zeros_like(y)

    def at(left: Tensor, right: Tensor) -> Tensor:
        given = {**arguments, second.argument: with_tensor(arguments[second.argument], second.path_in, right)}
        return first.run(twin, given, left)

    with torch.no_grad(), default_dtype(torch.float64):
        none = at(torch.zeros_like(x), zero)
        mixed = at(x, y) - at(x, zero) - at(torch.zeros_like(x), y) + none
        return bool(mixed.norm() <= 1e-8 * (at(x, y) - none).norm())


def measure_op(measurement: Measurement, op: Op, kernels: Sequence[Kernel]) -> Found | Refusal:
    """Measure one op: its structure, the types at both ends, and its equivariance on random features.

    Returns:
        What was found, or why it is no equivariant linear op, in words.
    """
    arguments = measurement.few(op.module, measurement.own.first[op.module][0][0])
    generator = torch.Generator().manual_seed(2)
    twin = measurement.twin

    def run(x: Tensor) -> Tensor:
        return op.run(twin, arguments, x)

    with torch.no_grad(), default_dtype(torch.float64):
        with perturbed(twin, inside=op.module):
            structure = probe_structure(run, op.read_in(twin, arguments), generator)
        if isinstance(structure, str):
            return Refusal(structure, "unexplained")
        if not structure.mixed_in and not structure.mixed_out:
            return Refusal("it only scales each entry by itself", "not linear")
        kernels = [kernel for kernel in kernels if math.prod(kernel.size) > 1]
        ends = _types_of_ends(measurement, op, structure, bool(kernels))
        if isinstance(ends, Refusal):
            return ends
        shaped: tuple[TensorType, TensorType, Convolution | None] | str
        if kernels and not all(end.is_invariant and not end.grid for end in ends):
            shaped = _convolution_types(measurement, op, kernels, ends)
        else:
            shaped = linear_types(op.read_in(twin, arguments), run, structure, ends)
        if isinstance(shaped, str):
            return Refusal(shaped, "unexplained")
        type_in, type_out, convolution = shaped
        residual = residual_on_random_features(measurement, op, type_in, type_out)
    if residual is None:
        return Refusal("its output is 0 for random features and weights", "unexplained")
    if residual > TOLERANCE:
        return Refusal(
            f"not equivariant for all weights as measured ({type_in} -> {type_out}): relative residual {residual:.1e} "
            "on random features and weights",
            "not equivariant",
        )
    return Found(op, type_in, type_out, convolution, residual)


def _types_of_ends(
    measurement: Measurement, op: Op, structure: Structure, convolves: bool
) -> tuple[TensorType, TensorType] | Refusal:
    twin = measurement.twin
    mixed_in, mixed_out = structure.mixed_in, structure.mixed_out
    verdict_in = _type_under_both(measurement, op, lambda given, result: op.read_in(twin, given), mixed_in)
    verdict_out = _type_under_both(measurement, op, lambda given, result: op.read_out(twin, given, result), mixed_out)
    if _is_silent(verdict_out, mixed_out) and op.node is None:
        verdict_out = _from_sums(measurement, op, mixed_out) or verdict_out
    for end, verdict in (("input", verdict_in), ("output", verdict_out)):
        if verdict.type is None:
            wrong = verdict_in.type is not None and _fails_as(measurement, op, verdict_in.type, verdict.refuted)
            reason = f"how its {end} transforms is not known: {verdict.reason}"
            return Refusal(reason, "not equivariant" if wrong else "unexplained")
    type_in, type_out = verdict_in.type, verdict_out.type
    assert type_in is not None
    assert type_out is not None
    silent = {"input": _is_silent(verdict_in, mixed_in), "output": _is_silent(verdict_out, mixed_out)}
    if any(silent.values()):
        where = " and ".join(end for end, is_silent in silent.items() if is_silent)
        moves = convolves and bool(type_in.grid or type_out.grid)
        invariant = type_in.is_invariant and type_out.is_invariant and not moves
        rest = ", the others are invariant" if invariant else ""
        reason = f"some features of its {where} are 0 on the whole sample batch and cannot be measured{rest}"
        return Refusal(reason, "invariant" if invariant else "unexplained")
    return type_in, type_out


def _fails_as(measurement: Measurement, op: Op, type_in: TensorType, type_out: TensorType | None) -> bool:
    """Tell whether an op of which a result transforms by ``type_out`` with some weights only is what breaks that."""
    residual = None if type_out is None else residual_on_random_features(measurement, op, type_in, type_out)
    return residual is not None and residual > TOLERANCE


def _is_silent(verdict: Verdict, mixed: tuple[int, ...]) -> bool:
    """Tell whether some feature, not only some row, is 0 in all runs."""
    features = {*mixed, *(() if verdict.type is None else verdict.type.axes)}
    return not features.isdisjoint(verdict.silent)


def _from_sums(measurement: Measurement, op: Op, mixed: tuple[int, ...]) -> Verdict | None:
    """Find the type of a result from what it is added to."""
    calls = measurement.changed.first[op.module]
    probe, index = measurement.changed, list(tensor_leaves(calls[0][1])).index(op.path_out)
    return None if probe.recording is None else type_by_use(probe.recording, probe.sums, op.module, index, mixed)


def _type_under_both(measurement: Measurement, op: Op, read: Reader, mixed: tuple[int, ...]) -> Verdict:
    """Infer a type from the runs with perturbed weights; it has to hold with the model's own, in every call.

    What the op mixes are features, each of which has to transform as the type says, however small it is.
    """
    name, changed = op.module, measurement.changed
    # What an op inside a forward received is computed anew, with the weights of the runs in question.
    context = perturbed(measurement.twin, inside=name) if op.node is not None else nullcontext()
    with context:
        tensors = [changed.tensor(name, read, call) for call in range(len(changed.first[name]))]
    verdict = infer_type(tensors[0], apart=mixed)
    if verdict.type is None:
        return verdict
    tensors += [measurement.own.tensor(name, read, call) for call in range(len(tensors))]
    deepest = max((-axis for axis in (*verdict.type.axes, *verdict.type.grid, *mixed)), default=0)
    for index, tensor in enumerate(tensors[1:], start=1):
        if tensor.base.ndim < deepest:
            return Verdict(None, float("inf"), "its shape is not the same in all calls")
        residual = residual_of(verdict.type, tensor, mixed)
        if not residual <= TOLERANCE:
            where = "in another call" if index < len(tensors) // 2 else "with other weights"
            reason = f"{verdict.type} does not hold {where} (relative residual {residual:.1e})"
            return Verdict(None, residual, reason, refuted=verdict.type)
    return verdict


def linear_types(
    x: Tensor, run: Callable[[Tensor], Tensor], structure: Structure, ends: tuple[TensorType, TensorType]
) -> tuple[TensorType, TensorType, Convolution | None] | str:
    """Take in the axes that the op mixes; an axis that transforms on one side is a feature axis on both."""
    type_in, type_out = ends
    y = run(x)
    shared = [pair for pair in structure.rows if pair[0] in type_in.axes or pair[1] in type_out.axes]
    features_in = {*structure.mixed_in, *(a for a, _ in shared)}
    features_out = {*structure.mixed_out, *(b for _, b in shared)}
    if not features_in.isdisjoint(type_in.grid) or not features_out.isdisjoint(type_out.grid):
        return "it mixes the points of a grid and is no convolution"
    if not set(type_in.axes) <= features_in or not set(type_out.axes) <= features_out:
        return "the axes that transform are not among those that it maps"
    copies_in = tuple(axis for axis in sorted(features_in) if axis not in type_in.axes)
    copies_out = tuple(axis for axis in sorted(features_out) if axis not in type_out.axes)
    return type_in.with_copies(copies_in, x), type_out.with_copies(copies_out, y), None


def _convolution_types(
    measurement: Measurement, op: Op, kernels: Sequence[Kernel], ends: tuple[TensorType, TensorType]
) -> tuple[TensorType, TensorType, Convolution | None] | str:
    type_in, type_out = ends
    if len(kernels) != 1:
        return f"it holds {len(kernels)} convolutions"
    kernel = kernels[0]
    points = len(kernel.size)
    grid, channel = tuple(range(-points, 0)), -points - 1
    if kernel.transposed:
        return "a transposed convolution, which takes no branch"
    if type_in.grid != grid or type_out.grid != grid or type_in.frame != type_out.frame:
        return "its kernel moves along other axes than the group's grid"
    if not {*type_in.axes, *type_out.axes} <= {channel}:
        return "its channels are not the axis that transforms"
    arguments = measurement.own.first[op.module][0][0]
    x = op.read_in(measurement.twin, arguments)
    y = op.run(measurement.twin, arguments, x)
    convolution = _padding_mode(measurement, op, kernel, type_in.frame)
    if convolution is None:
        return "its output is not that of the convolution inside it"
    with_in = type_in if type_in.axes else type_in.with_copies((channel,), x)
    with_out = type_out if type_out.axes else type_out.with_copies((channel,), y)
    return with_in, with_out, convolution


def _padding_mode(
    measurement: Measurement, op: Op, kernel: Kernel, frame: tuple[tuple[int, ...], ...]
) -> Convolution | None:
    """Find how the input is padded: the recorded kernel has to give the op's output on random features."""
    twin = measurement.twin
    arguments = measurement.own.first[op.module][0][0]
    x = random_like(op.read_in(twin, arguments), torch.Generator().manual_seed(3))
    points = len(kernel.size)
    extra = tuple(
        padding + max(0, wide - narrow) // 2
        for padding, wide, narrow in zip(kernel.padding, kernel.shape_in[-points:], x.shape[-points:], strict=True)
    )
    expected = op.run(twin, arguments, x) - op.run(twin, arguments, torch.zeros_like(x))
    for mode in ("zeros", "circular", "reflect", "replicate"):
        settings = Convolution(kernel.size, kernel.stride, extra, kernel.dilation, mode, frame)
        try:
            result = ConvolutionForm(settings).add(expected.new_zeros(()), (kernel.dense(),), x)
        except (RuntimeError, NotImplementedError):
            continue
        if result.shape == expected.shape and bool((result - expected).norm() <= 1e-4 * expected.norm()):
            return settings
    return None


def residual_on_random_features(
    measurement: Measurement, op: Op, type_in: TensorType, type_out: TensorType
) -> float | None:
    """Deviation from equivariance on random features, with own and with other weights; None if all results are 0.

    All other arguments are those of the runs under each element.
    """
    own = _deviation(measurement, op, type_in, type_out, measurement.own)
    with perturbed(measurement.twin, seed=1, inside=op.module):
        other = _deviation(measurement, op, type_in, type_out, measurement.own)
    # An op with weights 0, as last layers often start, shows nothing with its own.
    return None if other is None else max(other, own or 0.0)


def _deviation(
    measurement: Measurement, op: Op, type_in: TensorType, type_out: TensorType, probe: Probe
) -> float | None:
    twin, calls = measurement.twin, probe.calls(op.module)
    generator = torch.Generator().manual_seed(4)
    arguments = measurement.few(op.module, calls[0][0][0])
    x = random_like(op.read_in(twin, arguments), generator)
    offset = op.run(twin, arguments, torch.zeros_like(x))
    result = op.run(twin, arguments, x)
    scale = float((result - offset).norm())
    if not scale:
        return None
    worst, judges = 0.0, probe.elements.judges
    for (_, _, g), moved in zip(judges, calls[-len(judges) :], strict=True):
        turned = op.run(twin, measurement.few(op.module, moved[0][0]), type_in.act(g, x))
        worst = largest(worst, float((turned - type_out.act(g, result)).norm()) / scale)
    return worst


def same_action(left: Representation, right: Representation, elements: Tensor) -> bool:
    """Tell whether two representations of one group are the same matrices."""
    if left.dimension != right.dimension:
        return False
    if left.blocks == right.blocks:
        return True
    actions = left.action(elements), right.action(elements)
    for chosen in torch.split(torch.arange(left.dimension), COLUMNS):
        columns = torch.zeros(left.dimension, len(chosen), dtype=torch.float64)
        columns[chosen, torch.arange(len(chosen))] = 1
        one, other = (action.left(columns) for action in actions)
        if not torch.allclose(one, other, atol=1e-6):
            return False
    return True
