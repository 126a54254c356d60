"""Field types of escnn as representations: which of its elements an element of a group is, and what it does there."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import groupby
from operator import add
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import axes, matrices, regular, trivial
from surgeon.algebra.representations.core import Representation

ANGLE = 0.1
"""Radians; an element whose logarithm gives the derivative of a representation."""

PLANAR = ("CyclicGroup", "SO2", "DihedralGroup", "O2")
"""Classes of groups that act on the plane by themselves."""

TOLERANCE = 1e-6


def element_of(space: Any, matrix: Tensor) -> Any | None:
    """Return the element of a G-space's group that acts on space as an orthogonal matrix does; None if none does.

    Args:
        space: an escnn G-space, of the plane, of space, or without a base space.
        matrix: shape (2, 2) or (3, 3), float64.
    """
    act = _action(space)
    if act is None or len(act(space.fibergroup.identity)) != len(matrix):
        return None
    return next((each for each in _candidates(space.fibergroup, act, matrix) if _close(act(each), matrix)), None)


def _action(space: Any) -> Callable[[Any], Tensor] | None:
    """Return by which matrices a group acts on space; None if that is not known."""
    group = space.fibergroup
    if space.dimensionality:
        return partial(_image, space.basespace_action)
    if type(group).__name__ in PLANAR:
        return partial(_on_the_plane, group)
    standard = getattr(group, "standard_representation", None)
    return None if standard is None else partial(_image, standard())


def _on_the_plane(group: Any, element: Any) -> Tensor:
    """Return the matrix of an element of C_n, SO(2), D_n or O(2); reflections are those of the second axis."""
    value = element.to("int" if group.order() > 0 else "radians")
    flipped, turned = value if isinstance(value, tuple) else (0, value)
    angle = 2 * math.pi * turned / group.rotation_order if group.order() > 0 else turned
    c, s, sign = math.cos(angle), math.sin(angle), -1.0 if flipped else 1.0
    return torch.tensor([[c, -sign * s], [s, sign * c]], dtype=torch.float64)


def _candidates(group: Any, act: Callable[[Any], Tensor], matrix: Tensor) -> Iterator[Any]:
    """Yield the elements that may act as a matrix: all of a finite group."""
    if group.order() > 0:
        yield from group.elements
        return
    proper = float(torch.linalg.det(matrix)) > 0
    match type(group).__name__:
        case "SO2":
            yield from (group.element(angle, "radians") for angle in _angles(matrix))
        case "O2":
            for flip in (group.element((flipped, 0.0), "radians") for flipped in (0, 1)):
                yield from (group.element((0, angle), "radians") @ flip for angle in _angles(matrix @ act(flip).T))
        case "SO3" if proper:
            yield group.element(matrix.numpy(), "MAT")
        case "O3":
            yield group.element((0, matrix.numpy()) if proper else (1, -matrix.numpy()), "MAT")


def _angles(rotation: Tensor) -> tuple[float, float]:
    """Return by which angles a matrix turns, if it is a rotation about whatever axis."""
    sine = float((rotation - rotation.T).norm()) / 8**0.5
    angle = math.atan2(sine, (float(rotation.trace()) - (len(rotation) - 2)) / 2)
    return angle, -angle


def _close(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) < TOLERANCE


def fields(group: Group, kind: Any) -> Representation | None:
    """Return how a field type transforms under a group whose elements all belong to its own; None if some do not.

    Args:
        group: a group of rotations and reflections of the plane or of space.
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
