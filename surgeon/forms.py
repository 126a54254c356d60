"""The shapes that a branch can have: a matrix on some axes of its input, or a convolution kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from surgeon.errors import ShapeError
from surgeon.groups import Group
from surgeon.representations import Representation, on_grid
from surgeon.types import Convolution, Site


class Form(Protocol):
    """How W is applied, and which rows of its input it acts on."""

    def apply(self, weight: Tensor, x: Tensor, output: Tensor) -> Tensor:
        """Return W x, shaped as ``output``."""
        ...

    def rows(self, x: Tensor) -> Tensor:
        """Return the vectors that W, flattened to (d_out, -1), acts on; shape (n, weight.flatten(1).shape[1])."""
        ...


@dataclass(frozen=True)
class LinearForm:
    """A matrix W (d_out, d_in) on the flattened axes ``axes_in``, applied to every row of the other axes.

    Attributes:
        axes_in: negative positions of the input's feature axes, in the order in which they are flattened.
        axes_out: the same for the output.
    """

    axes_in: tuple[int, ...] = (-1,)
    axes_out: tuple[int, ...] = (-1,)

    def apply(self, weight: Tensor, x: Tensor, output: Tensor) -> Tensor:
        """Return ``rows @ W^T``, put back to the axes of the output.

        Raises:
            ShapeError: if the axes of the input or of the output do not have the dimensions of W.
        """
        added = functional.linear(self._flat(x, weight.shape[1]), weight)
        sizes = [output.shape[axis] for axis in self.axes_out]
        if math.prod(sizes) != weight.shape[0]:
            raise ShapeError(
                f"expected an output of dimension {weight.shape[0]} on the axes {list(self.axes_out)}, got shape "
                f"{tuple(output.shape)}: the plan was made for other data"
            )
        if self.axes_out == (-1,):
            return added
        ends = tuple(range(-len(sizes), 0))
        return added.reshape(*added.shape[:-1], *sizes).movedim(ends, self.axes_out)

    def rows(self, x: Tensor) -> Tensor:
        """Return the input's rows; shape (n, d_in)."""
        flat = self._flat(x)
        return flat.reshape(-1, flat.shape[-1])

    def _flat(self, x: Tensor, dimension: int | None = None) -> Tensor:
        if self.axes_in == (-1,):
            flat = x
        else:
            count = len(self.axes_in)
            flat = x.movedim(self.axes_in, tuple(range(-count, 0))).flatten(-count)
        if dimension is not None and flat.shape[-1] != dimension:
            raise ShapeError(f"expected features of dimension {dimension}, got shape {tuple(x.shape)}")
        return flat


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


@dataclass(frozen=True)
class ConvolutionForm:
    """A kernel W (d_out, d_in, *kernel); its rows are the patches (d_in * kernel points) of the output's positions.

    Attributes:
        settings: how the kernel moves.
    """

    settings: Convolution

    def apply(self, weight: Tensor, x: Tensor, output: Tensor) -> Tensor:
        """Return the cross-correlation of ``x`` (b, d_in, *grid) with the kernel."""
        settings = self.settings
        convolve = _CONVOLUTIONS[len(settings.kernel) - 1]
        if settings.mode == "zeros":
            return convolve(x, weight, None, settings.stride, settings.padding, settings.dilation)
        return convolve(self._padded(x), weight, None, settings.stride, 0, settings.dilation)

    def _padded(self, x: Tensor) -> Tensor:
        both = [size for size in reversed(self.settings.padding) for _ in range(2)]
        if not any(both):
            return x
        mode = "constant" if self.settings.mode == "zeros" else self.settings.mode
        return functional.pad(x, both, mode=mode)

    def rows(self, x: Tensor) -> Tensor:
        """Return all patches; shape (n, d_in * kernel points)."""
        settings, patches = self.settings, self._padded(x)
        first = patches.ndim - len(settings.kernel)
        for axis, (size, step, gap) in enumerate(
            zip(settings.kernel, settings.stride, settings.dilation, strict=True), start=first
        ):
            patches = patches.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        # (..., d_in, *positions, *kernel) -> (..., *positions, d_in, *kernel)
        patches = patches.movedim(first - 1, -len(settings.kernel) - 1)
        return patches.reshape(-1, x.shape[first - 1] * math.prod(settings.kernel))


def form_of(site: Site) -> Form:
    """Return the form of a site's branch."""
    if site.convolution is not None:
        return ConvolutionForm(site.convolution)
    return LinearForm(site.axes_in, site.axes_out)


def row_representations(site: Site, group: Group) -> tuple[Representation, Representation]:
    """Return the representations of W's two sides, flattened to (d_out, -1): output values, and rows or patches.

    Section 3.1 of the paper, for a convolution ``(L_g W)(u) = rho_out(g) W(g^-1 u) - W(u) rho_in(g)`` up to the
    substitution u -> g u, which does not change norms over the whole kernel.
    """
    rho_in, rho_out = (Representation.from_data(group, rho) for rho in (site.rho_in, site.rho_out))
    if site.convolution is not None:
        rho_in = on_grid(rho_in, site.convolution.kernel, site.convolution.frame)
    return rho_out, rho_in
