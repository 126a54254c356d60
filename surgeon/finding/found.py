"""An op between two types: the axes that its branch maps, how its kernel moves, and whether it is equivariant so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.equivariance import largest
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.forms import ConvolutionForm
from surgeon.finding.inference.hypotheses import TOLERANCE
from surgeon.finding.measurement import Measurement, perturbed
from surgeon.finding.ops import Op, Structure, random_like
from surgeon.plan import Convolution, Site
from surgeon.recording.kernels import Kernel
from surgeon.registry import Refusal
from surgeon.support.trees import map_tensors, plain_place

OF_DATA = (
    "it mixes the {} entries along axis {}, of which it takes any number, as of the points of a graph: W would fit "
    "this batch only; a branch needs a module whose weights act on each of them alone"
)


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


def found_between(
    measurement: Measurement,
    op: Op,
    structure: Structure,
    kernels: Sequence[Kernel],
    ends: tuple[TensorType | str, TensorType],
) -> Found | Refusal:
    """Take an op for one between two types, if it is equivariant so on random features."""
    type_in, type_out = ends
    if isinstance(type_in, str):
        return Refusal(type_in, "unexplained")
    if kernels and plain_place(op.path_in) != op.path_in:
        return Refusal("a convolution of complex numbers, which takes no branch", "unexplained")
    arguments = measurement.few(op.module, measurement.own.first[op.module][0][0])
    twin = measurement.twin
    shaped: tuple[TensorType, TensorType, Convolution | None] | str
    moves = any(not end.is_invariant or end.grid for end in (type_in, type_out))
    if kernels and moves and not _translated(kernels, (type_in, type_out)):
        shaped = _convolution_types(measurement, op, kernels, (type_in, type_out))
    else:
        x = op.read_in(twin, arguments)
        shaped = _linear_types(x, op.run(twin, arguments, x), structure, (type_in, type_out))
        for axis in sorted({*structure.mixed_in} - {*type_in.axes}) if moves else ():
            if _takes_any_number(measurement, op, arguments, x, axis):
                return Refusal(OF_DATA.format(x.shape[axis], axis), "bypassed")
    if isinstance(shaped, str):
        return Refusal(shaped, "unexplained")
    residual = residual_on_random_features(measurement, op, *shaped[:2])
    if residual is None:
        return Refusal("its output is 0 for random features and weights", "unexplained")
    if residual > TOLERANCE:
        return Refusal(
            f"not equivariant for all weights as measured ({shaped[0]} -> {shaped[1]}): relative residual "
            f"{residual:.1e} on random features and weights",
            "not equivariant",
        )
    return Found(op, *shaped, residual)


def _takes_any_number(measurement: Measurement, op: Op, arguments: Mapping[str, Any], x: Tensor, axis: int) -> bool:
    """Tell whether an op runs with twice as many entries along an axis: then the data say how many, and no weights.

    What else it is given is left as it is, or has twice as many entries too: along the same axis, as features of the
    same points have, or along every axis of that length, as what belongs to pairs of points has; and so have numbers.
    """
    count, place = x.shape[axis], x.ndim + axis

    def twice(tensor: Tensor, places: Sequence[int] = (place,)) -> Tensor:
        for each in places:
            longer = tensor.ndim > each and tensor.shape[each] == count
            tensor = torch.cat([tensor, tensor], dim=each) if longer else tensor
        return tensor

    def everywhere(tensor: Tensor) -> Tensor:
        return twice(tensor, range(tensor.ndim))

    numbers = {name: 2 * count if type(value) is int and value == count else value for name, value in arguments.items()}
    for given in (arguments, map_tensors(twice, arguments), map_tensors(everywhere, numbers)):
        try:
            op.run(measurement.twin, given, twice(x))
        except Exception:  # the op is foreign code
            continue
        return count > 1
    return False


def _translated(kernels: Sequence[Kernel], ends: tuple[TensorType, TensorType]) -> bool:
    """Tell whether the group acts on an axis along which kernels move: translations, which any kernel commutes with."""
    axes = {axis for kernel in kernels for axis in range(-len(kernel.size), 0)}
    return all(not end.grid and end.axes and axes.issuperset(end.axes) for end in ends)


def _linear_types(
    x: Tensor, y: Tensor, structure: Structure, ends: tuple[TensorType, TensorType]
) -> tuple[TensorType, TensorType, Convolution | None] | str:
    """Take in the axes that the op mixes; an axis that transforms on one side is a feature axis on both."""
    type_in, type_out = ends
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
        except RuntimeError:  # of sizes that do not fit, or a mode that torch does not have
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
    calls, elements = measurement.own.calls(op.module), measurement.own.elements.judging_matrices
    given = [measurement.few(op.module, each[0][0]) for each in (calls[0], *calls[-len(elements) :])]
    x = random_like(op.read_in(measurement.twin, given[0]), torch.Generator().manual_seed(4))
    features = [torch.zeros_like(x), x, *type_in.act(elements, x)]

    def results() -> Tensor:
        calls = zip((given[0], *given), features, strict=True)
        return torch.stack([op.run(measurement.twin, arguments, each) for arguments, each in calls])

    own = results()
    with perturbed(measurement.twin, seed=1, inside=op.module):
        offset, result, *moved = torch.stack([own, results()], dim=1)
    scales = (result - offset).flatten(1).norm(dim=1).tolist()
    errors = (torch.stack(moved) - type_out.act(elements, result)).flatten(2).norm(dim=2)
    # An op with weights 0, as last layers often start, shows nothing with its own.
    ratios = [error / scale for scale, each in zip(scales, errors.T.tolist(), strict=True) if scale for error in each]
    return reduce(largest, ratios, 0.0) if scales[1] else None
