"""The groups that have a name: rotations, motions, Lorentz transformations, cyclic and dihedral groups, scales."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.errors import GroupError

CHOICES = "SO2, O2, SO3, O3, SE3, E3, SO13, O13, C<n>, D<n>, OCTA, OCTAH, SCALE<n>"


@lru_cache(maxsize=64)
def named_group(name: str) -> Group | None:
    """Build a group from its name, once; case, brackets, commas, underscores and blanks are ignored.

    Returns:
        The group, or None if no group has this name.

    Raises:
        GroupError: if the name is that of a cyclic or dihedral group of order 0, or of scales by a factor below 2.
    """
    key = re.sub(r"[\s()\[\],_]", "", name).upper()
    scales = re.fullmatch(r"SCALE(\d+)", key)
    if scales:
        return _scales(int(scales[1]))
    finite = re.fullmatch(r"([CD])(\d+)", key)
    if finite:
        return _planar_group(finite[1], int(finite[2]))
    builders = {"SO2": _so2, "O2": _o2, "SO3": _so3, "O3": _o3, "SE3": _se3, "E3": _e3, "SO13": _so13, "O13": _o13}
    builders |= {"OCTA": _octahedral, "OCTAH": _full_octahedral}
    return builders[key]() if key in builders else None


def rotations_of(name: str) -> str | None:
    """Return the name of the subgroup without reflections, inversions or reversal of time; None if there is none.

    Example:
        >>> rotations_of("O3"), rotations_of("D6"), rotations_of("SO3")
        ('SO3', 'C6', None)
    """
    named = {"O2": "SO2", "O3": "SO3", "E3": "SE3", "O13": "SO13", "OCTAH": "OCTA"}
    return re.sub(r"^D(\d+)$", r"C\1", name) if re.fullmatch(r"D\d+", name) else named.get(name)


def _so2() -> Group:
    return Group("SO2", _rotation_algebra(2), _none(2), ("identity",), False, False, True, rotations=True)


def _o2() -> Group:
    names = ("identity", "reflection")
    return Group("O2", _rotation_algebra(2), _diagonals((1, -1)), names, False, False, True, rotations=True)


def _so3() -> Group:
    return Group("SO3", _rotation_algebra(3), _none(3), ("identity",), False, False, True, rotations=True)


def _o3() -> Group:
    names = ("identity", "inversion")
    return Group("O3", _rotation_algebra(3), _diagonals((-1, -1, -1)), names, False, False, True, rotations=True)


def _se3() -> Group:
    return Group("SE3", _motion_algebra(), _none(4), ("identity",), False, True, False, rotations=True)


def _e3() -> Group:
    names = ("identity", "inversion")
    return Group("E3", _motion_algebra(), _diagonals((-1, -1, -1, 1)), names, False, True, False, rotations=True)


def _so13() -> Group:
    """Build the proper orthochronous Lorentz group, coordinates (t, x, y, z)."""
    return Group("SO13", _lorentz_algebra(), _none(4), ("identity",), False, False, False)


def _o13() -> Group:
    names = ("identity", "parity", "time reversal", "parity and time reversal")
    elements = _diagonals((1, -1, -1, -1), (-1, 1, 1, 1), (-1, -1, -1, -1))
    return Group("O13", _lorentz_algebra(), elements, names, False, False, False)


def _planar_group(family: str, order: int) -> Group:
    name = f"{family}{order}"
    if order == 0:
        raise GroupError(f"expected {family}<n> with n at least 1, got {name}: write for example {family}4")
    c, s = math.cos(2 * math.pi / order), math.sin(2 * math.pi / order)
    rotation = torch.tensor([[[c, -s], [s, c]]], dtype=torch.float64)
    if family == "C":
        return _finite(name, rotation, "rotation")
    return _finite(name, torch.cat([rotation, _diagonals((1, -1))]), "rotation", "reflection")


def _octahedral() -> Group:
    """Build the 24 rotations of a cube, which map a cubic grid to itself, from quarter turns about x and z."""
    quarters = torch.linalg.matrix_exp(torch.pi / 2 * _rotation_algebra(3)[[0, 2]]).round()
    return _finite("OCTA", quarters, "quarter turn about x", "quarter turn about z")


def _full_octahedral() -> Group:
    """Build all 48 symmetries of a cube: its rotations, and each followed by the inversion."""
    rotations = _octahedral()
    elements = torch.cat([rotations.elements, _diagonals((-1, -1, -1))])
    return _finite("OCTAH", elements, *rotations.generator_names, "inversion")


def _finite(name: str, generators: Tensor, *names: str) -> Group:
    none = _none(generators.shape[-1])
    return Group(name, none, generators, ("all elements",), True, False, True, generator_names=names)


def _scales(factor: int) -> Group:
    """Build the discrete group of scales: 1 x 1 matrices, all powers of one that shrinks lengths by ``factor``."""
    if factor < 2:
        raise GroupError(
            f"expected SCALE<n> with a factor n of at least 2, got SCALE{factor}: write for example SCALE2"
        )
    shrinking = torch.full((1, 1, 1), 1 / factor, dtype=torch.float64)
    return Group(f"SCALE{factor}", _none(1), shrinking, ("identity", f"shrunk by {factor}"), False, False, False)


def _none(size: int) -> Tensor:
    return torch.zeros(0, size, size, dtype=torch.float64)


def _diagonals(*entries: tuple[int, ...]) -> Tensor:
    return torch.diag_embed(torch.tensor(entries, dtype=torch.float64))


def _rotation_algebra(size: int) -> Tensor:
    """Infinitesimal rotations; in three dimensions about x, y, z."""
    pairs = [(1, 2), (2, 0), (0, 1)] if size == 3 else list(combinations(range(size), 2))
    algebra = torch.zeros(len(pairs), size, size, dtype=torch.float64)
    for generator, (i, j) in zip(algebra, pairs, strict=True):
        generator[j, i], generator[i, j] = 1.0, -1.0
    return algebra


def _motion_algebra() -> Tensor:
    """Rotations about x, y, z, then translations along x, y, z, as homogeneous 4 x 4 matrices."""
    algebra = torch.zeros(6, 4, 4, dtype=torch.float64)
    algebra[:3, :3, :3] = _rotation_algebra(3)
    algebra[3:, :3, 3] = torch.eye(3, dtype=torch.float64)
    return algebra


def _lorentz_algebra() -> Tensor:
    """Rotations about x, y, z, then boosts along x, y, z, on (t, x, y, z)."""
    algebra = torch.zeros(6, 4, 4, dtype=torch.float64)
    algebra[:3, 1:, 1:] = _rotation_algebra(3)
    for axis in range(3):
        algebra[3 + axis, 0, 1 + axis] = algebra[3 + axis, 1 + axis, 0] = 1.0
    return algebra
