"""The matrix of an op, or its kernel, read off what it makes of unit features.

An equivariant map between direct sums of irreps is a multiple of the identity from each copy of an irrep to each other
one, and nothing else (Schur's lemma). Then one component of each copy is enough, and if all else that the op is given
is invariant, copies of different irreps are tried at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surgeon.algebra.folding import Entries
from surgeon.algebra.intertwiners import copy_indices
from surgeon.errors import GroupError, PlanError
from surgeon.finding.forms import LinearForm
from surgeon.finding.inside_forward import inside_forward
from surgeon.finding.ops import call_forward
from surgeon.finding.raw_ops import raw_op_at
from surgeon.finding.sample_calls import decoded_call
from surgeon.plan import Site
from surgeon.support.trees import as_numbers, as_pairs, map_tensors, plain_place, tensor_at, tensors_in, with_tensor

Wrap = Callable[[Tensor], Any]
"""Makes of features the argument of an op that takes them inside an object."""


class Matrices(Protocol):
    """Runs an op with its present weights."""

    entries: Entries
    """Where the entries that are read off are in W."""

    def __call__(self) -> Tensor:
        """Return these entries, and then what the op makes of features 0: shape (rows, entries + d_out)."""
        ...


def matrices_of(
    op: nn.Module, site: Site, fold: Mapping[str, Any], wrap: Wrap | None, most: int | None = None
) -> Matrices:
    """Return how to read off what an op does to features, and what it makes of features 0.

    Args:
        site: where its features are.
        fold: shape of the features and what else it is given, see :func:`surgeon.finding.sample_calls.sample_calls`.
        wrap: for features inside an object, how to make that.
        most: copies of each irrep in the features that are tried; default all.

    Raises:
        PlanError: if the features do not have the dimension of W.
    """
    return _Matrices(op, site, fold, wrap, most) if site.convolution is None else _Kernel(op, site, fold, wrap)


def tried_copies(site: Site, most: int | None = None) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Return where the copies of each irrep are that occurs at both ends; None where these are no sums of irreps.

    Args:
        site: not a convolution.
        most: copies of each irrep in the features that are tried, spread evenly; default all.

    Returns:
        Irrep to the flat indices of its copies in the result and of those in the features; shapes (copies, d).
    """
    try:
        outputs, inputs = copy_indices(site.rho_out), copy_indices(site.rho_in)
    except GroupError:
        return None
    shared = {label: own for label, own in inputs.items() if label in outputs}
    return {label: (outputs[label], own if most is None else _some(own, most)) for label, own in shared.items()}


def _some(copies: Tensor, most: int) -> Tensor:
    return copies if len(copies) <= most else copies[torch.linspace(0, len(copies) - 1, most).round().long()]


def _call_of(
    op: nn.Module, site: Site, wrap: Wrap | None, held: Mapping[str, Any] | None = None
) -> Callable[[Tensor, Mapping[str, Any]], Tensor]:
    """Return the op as a function of its features and of what else it is given."""
    if site.node is not None:
        called = None if held is None else decoded_call(held)
        apart = inside_forward(op, site.node).apart(raw_op_at(site.node, site.parameters), called)
        if plain_place(site.path_in) != site.path_in:
            return lambda x, given: as_pairs(apart(as_numbers(x)))
        return lambda x, given: as_pairs(apart(x))

    def call(x: Tensor, given: Mapping[str, Any]) -> Tensor:
        argument = wrap(x) if wrap is not None else with_tensor(given.get(site.argument), site.path_in, x)
        return tensor_at(call_forward(op, {**given, site.argument: argument}), site.path_out)

    return call


class _Matrices:
    """The matrices of an op in the rows of what else it is given, and what it makes of features 0."""

    def __init__(self, op: nn.Module, site: Site, fold: Mapping[str, Any], wrap: Wrap | None, most: int | None) -> None:
        self._site, self._call = site, _call_of(op, site, wrap, fold.get("call"))
        self._shape, self._given = tuple(fold["shape"]), decoded_call(fold.get("given", {"mapping": {}}))
        sizes = [self._shape[axis] for axis in site.axes_in]
        if math.prod(sizes) != site.shape[1]:
            raise PlanError(f"its features of shape {self._shape} do not have the dimension {site.shape[1]} of W")
        alone = any(not torch.equal(leaf, torch.eye(len(leaf))) for leaf in tensors_in(self._given) if leaf.ndim)
        self._units, self._unit, self._output, self.entries = _units(site, most, alone)
        self._together = len(sizes) < len(self._shape) and -len(self._shape) not in site.axes_in
        self._together = self._together and self._rows_are_apart()

    def __call__(self) -> Tensor:
        """Run the op, for all unit features at once if its rows have nothing to do with each other."""
        if self._together:
            columns = self._run(self._units)
        else:
            columns = torch.cat([self._run(unit) for unit in torch.split(self._units, 1)])
        found = columns[self._unit, :, self._output] - columns[-1][:, self._output].T
        return torch.cat([found.T, columns[-1]], dim=1)

    def _rows_are_apart(self) -> bool:
        try:
            both, one = self._run(self._units[[0, -1]]), self._run(self._units[:1])
        except Exception:  # what else it is given does not go by rows
            return False
        return both.shape[1:] == one.shape[1:] and bool((both[:1] - one).abs().max() <= 1e-9 * one.abs().max())

    def _run(self, units: Tensor) -> Tensor:
        """Put each of some unit features into every row: (units, d_in) to (units, rows, d_out)."""
        site, shape, given = self._site, self._shape, self._given
        sizes = [shape[axis] for axis in site.axes_in]
        others = [size for axis, size in enumerate(shape) if axis - len(shape) not in site.axes_in]
        x = units.reshape(-1, *(1 for _ in others), *sizes).expand(-1, *others, *sizes)
        x = x.movedim(tuple(range(-len(sizes), 0)), site.axes_in)
        x = x[0] if len(units) == 1 else x.flatten(0, 1)

        def repeated(tensor: Tensor) -> Tensor:
            return torch.cat([tensor] * len(units)) if tensor.ndim and tensor.shape[0] == shape[0] else tensor

        result = self._call(x.contiguous(), map_tensors(repeated, given) if len(units) > 1 else given)
        view, count = LinearForm(site.axes_out).view(result)
        return view.reshape(len(units), -1, math.prod(view.shape[count:]))


def _units(site: Site, most: int | None, alone: bool) -> tuple[Tensor, Tensor, Tensor, Entries]:
    """Return unit features, the last of them 0; which of them and which output tell each entry; and the entries.

    With ``alone``, each of the features has a single copy of a single irrep.
    """
    d_out, d_in = site.shape
    copies = tried_copies(site, most)
    if copies is None:
        unit, output = torch.arange(d_in).repeat(d_out), torch.arange(d_out).repeat_interleave(d_in)
        return torch.eye(d_in + 1, d_in), unit, output, Entries.single(d_out * d_in)
    counts = [len(columns) for _, columns in copies.values()]
    units, first = torch.zeros((sum(counts) if alone else max(counts, default=0)) + 1, d_in), 0
    none = torch.zeros(0, dtype=torch.long)
    told: list[tuple[Tensor, Tensor, Tensor, Tensor]] = [(none, none, none, none)]
    for rows, columns in copies.values():
        number = torch.arange(len(columns)) + first
        first += len(columns) if alone else 0
        units[number, columns[:, 0]] = 1
        positions = (rows[:, None] * d_in + columns).flatten(0, 1)
        sizes = torch.full((len(positions),), positions.shape[1])
        told.append((number.repeat(len(rows)), rows[:, 0].repeat_interleave(len(columns)), positions.flatten(), sizes))
    unit, output, positions, sizes = (torch.cat(parts) for parts in zip(*told, strict=True))
    return units, unit, output, Entries(positions, torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)]))


class _Kernel:
    """An op's kernel, and its bias.

    Each input is an image with one point that is not 0, far enough from the edges; for each stride the point has to be
    at several places, so that every point of the kernel meets it.
    """

    def __init__(self, op: nn.Module, site: Site, fold: Mapping[str, Any], wrap: Wrap | None) -> None:
        settings, d_in = site.convolution, site.shape[1]
        assert settings is not None
        extra = [0 if settings.mode == "zeros" else padding + 1 for padding in settings.padding]
        reach = [(size - 1) * gap for size, gap in zip(settings.kernel, settings.dilation, strict=True)]
        margins = [max(r - padding, 0) + e for r, padding, e in zip(reach, settings.padding, extra, strict=True)]
        lengths = [2 * margin + stride for margin, stride in zip(margins, settings.stride, strict=True)]
        images = torch.zeros(math.prod(settings.stride), d_in, d_in, *lengths)
        channel = torch.arange(d_in)
        for image, place in zip(images, itertools.product(*map(range, settings.stride)), strict=True):
            image[(channel, channel, *(m + p for m, p in zip(margins, place, strict=True)))] = 1
        images = torch.cat([images.flatten(0, 1), torch.zeros(1, d_in, *lengths)])
        points = torch.meshgrid(*map(torch.arange, settings.kernel), indexing="ij")
        number = torch.zeros(math.prod(settings.kernel), dtype=torch.long)
        positions: list[Tensor] = []
        for axis, point in enumerate(points):
            stride = settings.stride[axis]
            offset = margins[axis] + settings.padding[axis] - settings.dilation[axis] * point.flatten()
            number = number * stride + -offset % stride
            positions.append((offset + -offset % stride) // stride)
        self._images, self._number, self._positions = images, number * d_in + channel[:, None], tuple(positions)
        self._call, self.entries = _call_of(op, site, wrap, fold.get("call")), Entries.single(math.prod(site.shape))

    def __call__(self) -> Tensor:
        """Run the op on all images."""
        result = self._call(self._images, {}).movedim(1, -1)
        bias = result[-1][self._positions]
        found = result[(self._number, *self._positions)] - bias
        return torch.cat([found.flatten(0, 1).T.reshape(1, -1), bias[:1]], dim=1)
