"""How a whole tensor transforms: a representation on some of its axes, and perhaps a grid on others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import axes as vectors
from surgeon.algebra.representations.build import repeated, representation_from, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.grids import ON_GRID, in_frame, maps_to_itself
from surgeon.algebra.representations.operator import BlockOperator
from surgeon.errors import GroupError, ShapeError

Frame = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TensorType:
    """A representation on some axes of a tensor; all its other axes count rows or copies.

    Attributes:
        rho: acts on the axes ``axes``, flattened in that order.
        axes: negative positions; none for an invariant tensor (``rho`` is then the trivial one of dimension 1).
        grid: negative positions of the axes of a grid whose points the group moves about its centre.
        frame: signed permutation matrix; ``frame @ x`` are the grid's indices of the group's coordinates x.
    """

    rho: Representation
    axes: tuple[int, ...] = (-1,)
    grid: tuple[int, ...] = ()
    frame: Frame = ()

    @property
    def is_invariant(self) -> bool:
        """True if no entry changes, positions on a grid apart."""
        return self.rho.is_trivial

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """Return g x for one element, or for each of several.

        Args:
            g: shape (k, k) or (n, k, k), in the defining representation.
            x: shape (...), with the axes of this type.

        Returns:
            Shape (...) or (n, ...), dtype of ``x``.

        Raises:
            ShapeError: if the axes do not have the representation's dimension.
            GroupError: if there is a grid, and ``g`` does not map its points to points.
        """
        moved = self.on_rows(x)
        if moved.shape[-1] != self.rho.dimension:
            raise ShapeError(
                f"expected {self.rho.dimension} entries along the axes {list(self.axes)} for {self.rho}, got shape "
                f"{tuple(x.shape)}: choose other axes"
            )
        acted = self.off_rows(_operator(self.rho.group, self.rho, _key(g)).to(x).apply(moved), x)
        if g.ndim == 2:
            return self._move_grid(g, acted[0])
        return torch.stack([self._move_grid(*each) for each in zip(g, acted, strict=True)]) if self.grid else acted

    def on_rows(self, x: Tensor) -> Tensor:
        """Move the axes to the end and flatten them: shape (rows..., d)."""
        if not self.axes:
            return x.unsqueeze(-1)
        return x.movedim(self.axes, tuple(range(-len(self.axes), 0))).flatten(-len(self.axes))

    def off_rows(self, rows: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`on_rows` for a tensor shaped as ``like``."""
        if not self.axes:
            return rows.squeeze(-1)
        sizes = [like.shape[axis] for axis in self.axes]
        return rows.reshape(*rows.shape[:-1], *sizes).movedim(tuple(range(-len(self.axes), 0)), self.axes)

    def _move_grid(self, g: Tensor, x: Tensor) -> Tensor:
        if not self.grid:
            return x
        frame = torch.tensor(self.frame, dtype=torch.float64)
        exact = in_frame(self.rho.group.linear(g), frame)
        if self.rho.group.rescales:
            return self._shrunk(1 / float(exact[0, 0]), x)
        matrix = exact.round()
        if not maps_to_itself(exact):
            raise GroupError(
                f"expected an element of {self.rho.group.name} that maps the points of a grid to points, got one that "
                "does not: act with quarter turns and reflections of the axes"
            )
        # (g x)(u) = x(g^-1 u): axis i of the result runs along the axis j of x with matrix[i, j] = +-1.
        order = [int(matrix[axis].abs().argmax()) for axis in range(len(self.grid))]
        permutation = list(range(x.ndim))
        for axis, source in enumerate(order):
            permutation[self.grid[axis] % x.ndim] = self.grid[source] % x.ndim
        flips = [self.grid[axis] % x.ndim for axis, source in enumerate(order) if matrix[axis, source] < 0]
        return x.permute(permutation).flip(flips)

    def _shrunk(self, factor: float, x: Tensor) -> Tensor:
        """Return ``x(factor u)`` about the centre of the grid, and 0 where that is outside."""
        step = round(factor)
        if abs(factor - step) > ON_GRID or step < 1 or any(x.shape[axis] % 2 == 0 for axis in self.grid):
            raise GroupError(
                f"expected a grid with a point in its centre, shrunk by a whole number, got sizes "
                f"{[x.shape[axis] for axis in self.grid]} and the factor {factor:g}: act on grids of odd sizes"
            )
        for axis in self.grid:
            half = x.shape[axis] // 2
            kept = half // step
            points = torch.arange(-kept, kept + 1, device=x.device)
            x = torch.zeros_like(x).index_copy(axis, points + half, x.index_select(axis, step * points + half))
        return x

    def covered(self, g: Tensor, like: Tensor) -> Tensor | None:
        """Return which entries of ``g x`` come from an entry of ``x``, shaped as ``like``; None for all.

        A change of scale moves new points into the frame of a grid, and new scales into a range of them.
        """
        return self.act(g, torch.ones_like(like)) != 0 if self.rho.group.rescales else None

    def with_copies(self, axes: tuple[int, ...], x: Tensor) -> TensorType:
        """Return the same type with further axes of copies, which vary fastest in the flattened order.

        Args:
            axes: negative positions of the axes to take in.
            x: a tensor of this type, for the lengths.
        """
        count = math.prod(x.shape[axis] for axis in axes)
        return _with_copies(self.rho.group, self, axes, count) if axes else self

    def to_data(self) -> dict[str, Any]:
        """Return a description as JSON-compatible data."""
        data: dict[str, Any] = {"rho": self.rho.to_data(), "axes": list(self.axes)}
        if self.grid:
            data |= {"grid": list(self.grid), "frame": [list(row) for row in self.frame]}
        return data

    @classmethod
    def from_data(cls, group: Group, data: Mapping[str, Any]) -> TensorType:
        """Rebuild a type from :meth:`to_data`."""
        frame = tuple(tuple(int(entry) for entry in row) for row in data.get("frame", ()))
        rho = representation_from(group, data["rho"])
        return cls(rho, tuple(data["axes"]), tuple(data.get("grid", ())), frame)

    def __str__(self) -> str:
        """In words: the representation, and its axes if they are not the last one."""
        where = "" if self.axes in ((-1,), ()) else f" on axes {', '.join(map(str, self.axes))}"
        moved = f", grid {', '.join(map(str, self.grid))}" if self.grid else ""
        return f"{self.rho}{where}{moved}"


@lru_cache(maxsize=1024)
def _with_copies(group: Group, kind: TensorType, axes: tuple[int, ...], count: int) -> TensorType:
    """Return a type with ``count`` copies along further axes; most layers of a network ask for the same."""
    spec = kind.rho.to_data()
    if not kind.axes and kind.rho.is_trivial and kind.rho.dimension == 1:
        rho = trivial(group, count)
    elif "axes" in spec and not spec["sizes"]:
        rho = vectors(group, f"{spec['axes']} c", {"c": count}, spec.get("signs", ()))
    else:
        rho = repeated(kind.rho, count)
    return TensorType(rho, (*kind.axes, *axes), kind.grid, kind.frame)


Key = tuple[tuple[int, ...], tuple[float, ...]]


def _key(g: Tensor) -> Key:
    return tuple(g.shape), tuple(g.detach().to("cpu", torch.float64).flatten().tolist())


@lru_cache(maxsize=1024)
def _operator(group: Group, rho: Representation, g: Key) -> BlockOperator:
    """Return rho(g); measuring a model asks for the same few elements again and again."""
    shape, entries = g
    return rho.action(torch.tensor(entries, dtype=torch.float64).reshape(shape))
