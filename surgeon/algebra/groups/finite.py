"""Finite groups that have a name, each a few generating matrices."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.errors import GroupError

SIZES = {"C": (1, 10_000), "D": (1, 5_000), "S": (2, 6), "Z": (2, 32)}
"""Least and largest n of the families. Weights that commute with S_6 on six points are the same for more of them."""

GOLDEN = (1 + 5**0.5) / 2


def finite_group(key: str) -> Group | None:
    """Build a finite group from its name in capitals; None if there is none of this name.

    ``C<n>`` and ``D<n>`` act on the plane; ``OCTA`` (rotations of a cube), ``ICOSA`` (of an icosahedron), and with the
    inversion ``OCTAH`` and ``ICOSAH`` on space; ``S<n>`` permutes n points, ``Z<n>`` moves n points on a ring.

    Raises:
        GroupError: if n is too small, or too large.
    """
    solids = {"OCTA": (_turn(4, 1, 0, 0), _turn(4, 0, 0, 1)), "ICOSA": (_turn(5, 0, 1, GOLDEN), _turn(3, 1, 1, 1))}
    named = {
        "OCTA": ("quarter turn about x", "quarter turn about z"),
        "ICOSA": ("turn about a corner", "turn about a face"),
    }
    solid = key.removesuffix("H")
    if solid in solids:
        turns, names = torch.stack(solids[solid]), named[solid]
        if key == solid:
            return _finite(key, turns, *names)
        return _finite(key, torch.cat([turns, diagonals((-1, -1, -1))]), *names, "inversion")
    family = re.fullmatch(r"([CDSZ])(\d+)", key)
    return None if family is None else _of_family(family[1], int(family[2]))


def _of_family(family: str, size: int) -> Group:
    least, most = SIZES[family]
    name = f"{family}{size}"
    if not least <= size <= most:
        few = ": weights that commute with it are the same for more points, so give few" if family in "SZ" else ""
        raise GroupError(f"expected {family}<n> with n from {least} to {most}, got {name}{few or ': choose another n'}")
    if family in "CD":
        angle = 2 * math.pi / size
        c, s = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[[c, -s], [s, c]]], dtype=torch.float64)
        if family == "C":
            return _finite(name, rotation, "rotation")
        return _finite(name, torch.cat([rotation, diagonals((1, -1))]), "rotation", "reflection")
    points = torch.eye(size, dtype=torch.float64)
    around = points.roll(1, 0)[None]
    if family == "Z":
        return _finite(name, around, "shift by one point")
    exchange = points[[1, 0, *range(2, size)]][None]
    if size == 2:
        return _finite(name, exchange, "exchange of two points")
    return _finite(name, torch.cat([exchange, around]), "exchange of two points", "shift of all points")


def _turn(order: int, *axis: float) -> Tensor:
    """Rotation by a whole turn divided by ``order``; whole numbers are these."""
    vector = torch.tensor(axis, dtype=torch.float64)
    x, y, z = (2 * math.pi / order * vector / vector.norm()).tolist()
    turn: Tensor = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
    return torch.where((turn - turn.round()).abs() < 1e-12, turn.round(), turn)


def _finite(name: str, generators: Tensor, *names: str) -> Group:
    none = no_generators(generators.shape[-1])
    return Group(name, none, generators, ("all elements",), True, False, True, generator_names=names)


def no_generators(size: int) -> Tensor:
    """Return no matrices, shape (0, size, size)."""
    return torch.zeros(0, size, size, dtype=torch.float64)


def diagonals(*entries: tuple[int, ...]) -> Tensor:
    """Return diagonal matrices, shape (n, k, k)."""
    return torch.diag_embed(torch.tensor(entries, dtype=torch.float64))
