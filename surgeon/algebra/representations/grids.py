"""How a group of matrices moves the points of a regular grid about its centre."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.errors import GroupError

ON_GRID = 1e-6
"""A matrix this close to a signed permutation maps grid points to grid points."""


def check_frame(group: Group, sizes: Sequence[int], frame: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return a frame as nested lists of whole numbers.

    Args:
        group: the group; its linear part acts on the grid.
        sizes: points along each axis of the grid.
        frame: signed permutation matrix from the group's coordinates to the grid's axes.

    Raises:
        GroupError: if it is not a signed permutation of the group's dimension and the grid's.
    """
    d = len(sizes) if group.rescales else group.vector_dimension
    good = len(frame) == d and len(sizes) == d and all(len(row) == d for row in frame) and min(sizes) > 0
    if not good or not is_signed_permutation(torch.tensor(frame, dtype=torch.float64)):
        raise GroupError(
            f"expected a signed permutation of size {d} and a grid with {d} axes of points for {group.name}, got frame "
            f"{[list(row) for row in frame]} and sizes {list(sizes)}: correct them"
        )
    return [[int(entry) for entry in row] for row in frame]


def is_signed_permutation(matrix: Tensor) -> bool:
    """Tell whether a square matrix has one entry +-1 in each row and column, and zeros otherwise."""
    places = matrix.abs()
    whole = bool(((places == 0) | (places == 1)).all())
    return whole and bool((places.sum(0) == 1).all()) and bool((places.sum(1) == 1).all())


def maps_to_itself(matrix: Tensor) -> bool:
    """Tell whether a matrix in the coordinates of a grid's axes maps its points to points, if sizes allow it."""
    whole = matrix.round()
    return float((matrix - whole).abs().max()) <= ON_GRID and is_signed_permutation(whole)


@lru_cache(maxsize=64)
def _grid(data: str) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Sizes, frame, and the positions of all points about the centre, shape (points, d)."""
    parsed = json.loads(data)
    sizes = tuple(int(size) for size in parsed["sizes"])
    ranges = [torch.arange(size, dtype=torch.float64) - (size - 1) / 2 for size in sizes]
    positions = torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).reshape(-1, len(sizes))
    return sizes, torch.tensor(parsed["frame"], dtype=torch.float64), positions


def grid_points(data: str) -> int:
    """Return the number of points."""
    return math.prod(_grid(data)[0])


def in_frame(matrices: Tensor, frame: Tensor) -> Tensor:
    """Return group matrices (..., d, d), or scales (..., 1, 1), in the coordinates of the grid's axes."""
    if matrices.shape[-1] == 1:
        return matrices * torch.eye(len(frame), dtype=matrices.dtype)
    return frame @ matrices @ frame.mT


def grid_action(data: str, linear: Tensor) -> Tensor:
    """Return the matrices of ``(g x)(u) = x(g^-1 u)``; shape (n, points, points).

    A point that g^-1 moves off the grid takes its value by multilinear interpolation, and 0 outside the grid.
    """
    sizes, frame, positions = _grid(data)
    moved = [_resampling(sizes, positions @ torch.linalg.inv(in_frame(g, frame)).mT) for g in linear]
    return torch.stack(moved) if moved else torch.zeros(0, len(positions), len(positions), dtype=torch.float64)


def _resampling(sizes: tuple[int, ...], sources: Tensor) -> Tensor:
    """Interpolation weights from grid values to ``sources`` (points, d): shape (points, points)."""
    index = sources + (torch.tensor(sizes, dtype=torch.float64) - 1) / 2
    rounded = index.round()
    index = torch.where((index - rounded).abs() < ON_GRID, rounded, index)
    low = index.floor()
    weights = torch.zeros(len(sources), math.prod(sizes), dtype=torch.float64)
    limits = torch.tensor(sizes)
    for corner in torch.cartesian_prod(*([torch.tensor([0.0, 1.0], dtype=torch.float64)] * len(sizes))).reshape(
        -1, len(sizes)
    ):
        point = low + corner
        share = (1 - (index - point).abs()).clamp(min=0).prod(dim=1)
        inside = ((point >= 0) & (point < limits)).all(dim=1) & (share > 0)
        flat = torch.zeros(len(sources), dtype=torch.long)
        for axis, size in enumerate(sizes):
            flat = flat * size + point[:, axis].clamp(0, size - 1).long()
        rows = torch.arange(len(sources))[inside]
        weights.index_put_((rows, flat[inside]), share[inside], accumulate=True)
    return weights


def grid_derivative(data: str, linear: Tensor) -> Tensor:
    """Return the matrices of ``x -> -(A u) . grad x`` for Lie-algebra elements A; shape (n, points, points).

    The gradient is a central difference, one-sided at the border.
    """
    sizes, frame, positions = _grid(data)
    gradients = torch.stack([_difference(sizes, axis) for axis in range(len(sizes))])
    velocities = torch.einsum("nij,pj->npi", in_frame(linear, frame), positions)
    return -torch.einsum("npi,ipq->npq", velocities, gradients)


def _difference(sizes: tuple[int, ...], axis: int) -> Tensor:
    size = sizes[axis]
    one = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        low, high = max(i - 1, 0), min(i + 1, size - 1)
        if high > low:
            one[i, high] += 1.0 / (high - low)
            one[i, low] -= 1.0 / (high - low)
    result = torch.ones(1, 1, dtype=torch.float64)
    for other, length in enumerate(sizes):
        result = torch.kron(result, one if other == axis else torch.eye(length, dtype=torch.float64))
    return result
