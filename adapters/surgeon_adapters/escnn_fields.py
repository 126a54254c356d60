"""Field types of escnn as representations: which of its elements an element of a group is, and what it does there."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import groupby
from operator import add
from typing import Any

import torch
from torch import Tensor

from surgeon.groups import Group
from surgeon.representations import Representation, axes, matrices, regular, trivial

ANGLE = 0.1
"""Radians; an element whose logarithm gives the derivative of a representation."""

TOLERANCE = 1e-6


def element_of(space: Any, matrix: Tensor) -> Any | None:
    """Return the element of a G-space's group that acts on space as an orthogonal matrix does; None if none does.

    Args:
        space: an escnn G-space: planar rotations, with or without reflections, or rotations of space.
        matrix: shape (2, 2) or (3, 3), float64.
    """
    group = space.fibergroup
    family, proper = type(group).__name__, float(torch.linalg.det(matrix)) > 0
    size = 3 if family == "SO3" else 2 if family in ("CyclicGroup", "SO2", "DihedralGroup", "O2") else 0
    if (
        len(matrix) != size
        or space.dimensionality not in (0, size)
        or (not proper and family in ("CyclicGroup", "SO2"))
    ):
        return None
    if family == "SO3":
        return group.element(matrix.numpy(), "MAT") if proper else None
    if group.order() > 0:
        return next((each for each in group.elements if _close(_acting(space, each), matrix)), None)
    if family == "SO2":
        found = group.element(_angle(matrix), "radians")
    else:
        flip = group.element((0 if proper else 1, 0.0), "radians")
        found = group.element((0, _angle(matrix @ torch.linalg.inv(_acting(space, flip)))), "radians") @ flip
    return found if _close(_acting(space, found), matrix) else None


def _acting(space: Any, element: Any) -> Tensor:
    """Return the matrix by which an element of a planar group acts on the plane."""
    if space.dimensionality:
        return torch.as_tensor(space.basespace_action(element), dtype=torch.float64)
    group = space.fibergroup
    if type(group).__name__ in ("CyclicGroup", "SO2"):
        angle = 2 * math.pi * element.to("int") / group.order() if group.order() > 0 else element.to("radians")
        flipped = 0
    else:
        flipped, value = element.to("int" if group.order() > 0 else "radians")
        angle = 2 * math.pi * value / group.rotation_order if group.order() > 0 else value
    c, s, sign = math.cos(angle), math.sin(angle), -1.0 if flipped else 1.0
    return torch.tensor([[c, -sign * s], [s, sign * c]], dtype=torch.float64)


def _angle(rotation: Tensor) -> float:
    return math.atan2(float(rotation[1, 0]), float(rotation[0, 0]))


def _close(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) < TOLERANCE


def fields(group: Group, kind: Any) -> Representation | None:
    """Return how a field type transforms under a group whose elements all belong to its own; None if some do not.

    Args:
        group: a group of rotations and reflections of the plane, or of rotations of space.
        kind: an escnn field type; neighbours of one representation become copies.
    """
    elements = [element_of(kind.gspace, matrix) for matrix in group.feature_elements]
    small = [element_of(kind.gspace, torch.linalg.matrix_exp(ANGLE * a)) for a in group.feature_algebra]
    if any(each is None for each in (*elements, *small)):
        return None
    return reduce(add, (_field(group, each, count, elements, small) for each, count in _counted(kind.representations)))


def _counted(representations: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    for _, same in groupby(representations, key=lambda each: each.name):
        members = list(same)
        yield members[0], len(members)


def _field(group: Group, representation: Any, copies: int, elements: list[Any], small: list[Any]) -> Representation:
    size = representation.size
    images = _stacked([_tidy(_image(representation, each)) for each in elements], size)
    logarithm = importlib.import_module("scipy.linalg").logm
    algebra = _stacked(
        [_tidy(torch.from_numpy(logarithm(_image(representation, each).numpy())).real / ANGLE) for each in small], size
    )
    if not bool(algebra.any()) and bool((images == torch.eye(size, dtype=torch.float64)).all()):
        return trivial(group, copies * size)
    if torch.equal(algebra, group.feature_algebra) and _same(images, group.feature_elements):
        return axes(group, "c v", {"c": copies})
    if group.finite and _same(images, regular(group, 1).action(group.elements).dense()):
        return regular(group, copies)
    return matrices(group, {"algebra": algebra.tolist(), "elements": images.tolist()}, copies)


def _image(representation: Any, element: Any) -> Tensor:
    return torch.as_tensor(representation(element), dtype=torch.float64)


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(torch.allclose(left, right, rtol=0, atol=TOLERANCE))


def _stacked(parts: list[Tensor], size: int) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros(0, size, size, dtype=torch.float64)


def _tidy(matrix: Tensor) -> Tensor:
    """Take off the rounding of whole numbers."""
    return torch.where((matrix - matrix.round()).abs() < TOLERANCE, matrix.round() + 0.0, matrix)
