"""The shapes that a branch can have: a matrix on some axes of its input, or a convolution kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from surgeon.algebra.representations.build import on_grid
from surgeon.algebra.representations.core import Representation
from surgeon.errors import PlanError, ShapeError
from surgeon.plan import Convolution, Site
from surgeon.support.trees import as_numbers, as_pairs

GOLDEN = (math.sqrt(5) - 1) / 2


class Form(Protocol):
    """How W is applied, and which rows of its input it acts on."""

    def add(self, output: Tensor, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return ``output + W x``.

        Args:
            output: what the op returned.
            weights: W alone, or A and B of a low-rank ``W = B A``; A first, as they are applied.
        """
        ...

    def view(self, x: Tensor) -> tuple[Tensor, int]:
        """Return ``x`` as a view with the axes that index its rows first, and how many of these there are."""
        ...

    def view_out(self, output: Tensor) -> tuple[Tensor, int]:
        """Return the same of what the op returned, whose rows are in the same order."""
        ...


def rows_of(form: Form, x: Tensor) -> Tensor:
    """Return the vectors that W, flattened to (d_out, -1), acts on; shape (n, row size)."""
    view, count = form.view(x)
    return view.reshape(-1, math.prod(view.shape[count:]))


def row_count(form: Form, x: Tensor) -> int:
    """Return how many rows :func:`rows_of` has."""
    view, count = form.view(x)
    return math.prod(view.shape[:count])


def some_rows(form: Form, x: Tensor, count: int, offset: float) -> Tensor:
    """Return ``count`` rows spread evenly over all of them, without copying the others.

    Row k is number ``floor(n frac(offset + k phi))`` with the golden ratio phi: a sequence that no period of the data
    can fall in step with.

    Args:
        form: how W is applied.
        count: how many; all rows are returned if there are no more.
        offset: in [0, 1); where the sequence starts.

    Returns:
        Shape (min(n, count), row size).
    """
    return _spread(*form.view(x), count, offset)


def some_rows_out(form: Form, output: Tensor, count: int, offset: float) -> Tensor:
    """Return the rows of what the op returned for those features that :func:`some_rows` returns."""
    return _spread(*form.view_out(output), count, offset)


def _spread(view: Tensor, axes: int, count: int, offset: float) -> Tensor:
    total = math.prod(view.shape[:axes])
    if total <= count:
        return view.reshape(total, math.prod(view.shape[axes:]))
    steps = torch.arange(count, device=view.device, dtype=torch.float64)
    chosen = ((steps * GOLDEN + offset).frac() * total).long().clamp(max=total - 1)
    index = torch.unravel_index(chosen, view.shape[:axes])
    return view[index].flatten(1)


@dataclass(frozen=True)
class LinearForm:
    """A matrix W (d_out, d_in) on the flattened axes ``axes_in``, applied to every row of the other axes.

    The last axis of complex tensors is that of their real and imaginary parts.

    Attributes:
        axes_in: negative positions of the input's feature axes, in the order in which they are flattened.
        axes_out: the same for the output.
    """

    axes_in: tuple[int, ...] = (-1,)
    axes_out: tuple[int, ...] = (-1,)

    def add(self, output: Tensor, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return ``output + rows @ W^T``, on the axes of the output.

        Raises:
            ShapeError: if the axes of the input or of the output do not have the dimensions of W.
        """
        if output.is_complex():
            return as_numbers(self.add(as_pairs(output), weights, x))
        x = as_pairs(x)
        self._check(output, weights, x)
        trailing = -1 - self.axes_in[-1]
        if trailing and trailing == -1 - self.axes_out[-1] and _adjacent(self.axes_in) and _adjacent(self.axes_out):
            return _add_columns(output, weights, x, trailing)
        features = _last(x, self.axes_in)
        for weight in weights[:-1]:
            features = functional.linear(features, weight)
        if self.axes_out[-1] == -1 and _adjacent(self.axes_out) and _fusible(output, features):
            rows = features.reshape(-1, features.shape[-1])
            return torch.addmm(output.view(-1, len(weights[-1])), rows, weights[-1].T).view(output.shape)
        added = functional.linear(features, weights[-1])
        return output + self._placed(added, [output.shape[axis] for axis in self.axes_out])

    def product(self, weight: Tensor, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return ``rows @ W^T``, where the axes of the output have these sizes."""
        return self._placed(functional.linear(_last(x, self.axes_in), weight), sizes)

    def _placed(self, flat: Tensor, sizes: Sequence[int]) -> Tensor:
        """Put the last axis back to the axes of the output."""
        if self.axes_out == (-1,):
            return flat
        ends = tuple(range(-len(sizes), 0))
        return flat.reshape(*flat.shape[:-1], *sizes).movedim(ends, self.axes_out)

    def view(self, x: Tensor) -> tuple[Tensor, int]:
        """Return ``x`` with its feature axes last."""
        return _axes_last(as_pairs(x), self.axes_in)

    def view_out(self, output: Tensor) -> tuple[Tensor, int]:
        """Return what the op returned with its feature axes last."""
        return _axes_last(as_pairs(output), self.axes_out)

    def _check(self, output: Tensor, weights: Sequence[Tensor], x: Tensor) -> None:
        d_out, d_in = weights[-1].shape[0], weights[0].shape[1]
        if math.prod([output.shape[axis] for axis in self.axes_out]) != d_out:
            raise ShapeError(
                f"expected an output of dimension {d_out} on the axes {list(self.axes_out)}, got shape "
                f"{tuple(output.shape)}: the plan was made for other data"
            )
        if math.prod([x.shape[axis] for axis in self.axes_in]) != d_in:
            raise ShapeError(f"expected features of dimension {d_in}, got shape {tuple(x.shape)}")


def _axes_last(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, int]:
    if axes == (-1,):
        return x, x.ndim - 1
    return x.movedim(axes, tuple(range(-len(axes), 0))), x.ndim - len(axes)


def _adjacent(axes: tuple[int, ...]) -> bool:
    return all(after == before + 1 for before, after in zip(axes, axes[1:], strict=False))


def _last(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Move the axes to the end and flatten them."""
    if axes == (-1,):
        return x
    return x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes))


def _fusible(output: Tensor, features: Tensor) -> bool:
    """Tell whether product and sum can be one kernel: the result then has the strides and the precision of the sum."""
    return (
        output.is_contiguous() and output.dtype == features.dtype and not torch.is_autocast_enabled(output.device.type)
    )


def _add_columns(output: Tensor, weights: Sequence[Tensor], x: Tensor, trailing: int) -> Tensor:
    """Add W x where rows are indexed by ``trailing`` last axes: features are columns, and nothing is transposed."""
    columns = math.prod(x.shape[-trailing:])
    features = x.reshape(-1, weights[0].shape[1], columns)
    for weight in weights[:-1]:
        features = torch.bmm(weight.expand(len(features), -1, -1), features)
    last = weights[-1].expand(len(features), -1, -1)
    if _fusible(output, features):
        return torch.baddbmm(output.view(-1, last.shape[1], columns), last, features).view(output.shape)
    return output + torch.bmm(last, features).reshape(output.shape)


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


@dataclass(frozen=True)
class ConvolutionForm:
    """A kernel W (d_out, d_in, *kernel); its rows are the patches (d_in * kernel points) of the output's positions.

    A low-rank kernel is a convolution A to ``rank`` channels, followed by a map B of channels.

    Attributes:
        settings: how the kernel moves.
    """

    settings: Convolution

    def add(self, output: Tensor, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return ``output`` plus the cross-correlation of ``x`` (b, d_in, *grid) with the kernel."""
        settings = self.settings
        convolve = _CONVOLUTIONS[len(settings.kernel) - 1]
        if settings.mode == "zeros":
            added = convolve(x, weights[0], None, settings.stride, settings.padding, settings.dilation)
        else:
            added = convolve(self._padded(x), weights[0], None, settings.stride, 0, settings.dilation)
        for weight in weights[1:]:
            added = convolve(added, weight.reshape(*weight.shape, *(1 for _ in settings.kernel)))
        return output + added

    def _padded(self, x: Tensor) -> Tensor:
        both = [size for size in reversed(self.settings.padding) for _ in range(2)]
        if not any(both):
            return x
        mode = "constant" if self.settings.mode == "zeros" else self.settings.mode
        return functional.pad(x, both, mode=mode)

    def view(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the patches, shape (b, *positions, d_in, *kernel)."""
        settings, patches = self.settings, self._padded(x)
        first = patches.ndim - len(settings.kernel)
        for axis, (size, step, gap) in enumerate(
            zip(settings.kernel, settings.stride, settings.dilation, strict=True), start=first
        ):
            patches = patches.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        # (..., d_in, *positions, *kernel) -> (..., *positions, d_in, *kernel)
        patches = patches.movedim(first - 1, -len(settings.kernel) - 1)
        return patches, patches.ndim - len(settings.kernel) - 1

    def view_out(self, output: Tensor) -> tuple[Tensor, int]:
        """Return the values at all positions, shape (b, *positions, d_out)."""
        return output.movedim(-len(self.settings.kernel) - 1, -1), output.ndim - 1


def form_of(site: Site) -> Form:
    """Return the form of a site's branch."""
    if site.convolution is not None:
        return ConvolutionForm(site.convolution)
    return LinearForm(site.axes_in, site.axes_out)


def row_representations(site: Site) -> tuple[Representation, Representation]:
    """Return the representations of W's two sides, flattened to (d_out, -1): output values, and rows or patches.

    Section 3.1 of the paper, for a convolution ``(L_g W)(u) = rho_out(g) W(g^-1 u) - W(u) rho_in(g)`` up to the
    substitution u -> g u, which does not change norms over the whole kernel.
    """
    if site.convolution is None:
        return site.rho_out, site.rho_in
    return site.rho_out, on_grid(site.rho_in, site.convolution.kernel, site.convolution.frame)


def block_mask(site: Site) -> Tensor | None:
    """Return where W may differ from 0 if it is restricted to blocks (l_in, l_out); shape (d_out, d_in, 1, ...).

    Raises:
        PlanError: if a representation has other parts than irreps and vectors, or a block does not occur.
    """
    if site.blocks is None:
        return None
    degrees_out, degrees_in = (degrees(rho, site.key) for rho in (site.rho_out, site.rho_in))
    mask = torch.zeros(len(degrees_out), len(degrees_in), dtype=torch.float64)
    for l_in, l_out in site.blocks:
        block = (degrees_out[:, None] == l_out) & (degrees_in[None, :] == l_in)
        if not block.any():
            raise PlanError(
                f"expected blocks (l_in, l_out) that W at {site.key!r} has, but it has none from l = {l_in} to "
                f"l = {l_out}: its input has l = {_listed(degrees_in)}, its output l = {_listed(degrees_out)}"
            )
        mask[block] = 1
    return mask.reshape(*mask.shape, *(1 for _ in site.shape[2:]))


def _listed(values: Tensor) -> str:
    return ", ".join(str(int(value)) for value in sorted(set(values.tolist())))


def degrees(rho: Representation, where: str) -> Tensor:
    """Return the degree l of every coordinate: 0 for invariants, 1 for vectors; long, shape (d,).

    Raises:
        PlanError: if the representation has other parts; ``where`` is named.
    """
    found = torch.zeros(rho.dimension, dtype=torch.long)
    for block in rho.blocks:
        kinds = [factor.kind for _, factor in block.factors]
        if len(kinds) > 1 or not set(kinds) <= {"irrep", "vector"}:
            raise PlanError(
                f"expected a direct sum of irreps and vectors at {where!r} to choose blocks by l, got {rho}: leave the "
                "blocks out"
            )
        if kinds:
            factor = block.factors[0][1]
            found[block.start : block.start + block.size] = factor.degree if factor.kind == "irrep" else 1
    return found
