"""The groups that have a name: rotations, motions, Lorentz transformations, unitary and finite groups, scales."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.finite import diagonals, finite_group, no_generators
from surgeon.errors import GroupError

CHOICES = (
    "SO2, O2, SO3, O3, SE3, E3, SO13 or Lorentz, O13, U1, SU2, SU3, C<n>, D<n>, OCTA, OCTAH, ICOSA, ICOSAH, "
    "P4, P4M, S<n>, Z<n>, SCALE<n>"
)
ALSO_CALLED = {"LORENTZ": "SO13", "U1": "SO2", "P4": "C4", "P4M": "D4", "P4MM": "D4"}
"""The wallpaper groups by their point groups, which act; translations commute with every convolution anyway."""


@lru_cache(maxsize=64)
def named_group(name: str) -> Group | None:
    """Build a group from its name, once; case, brackets, commas, underscores and blanks are ignored.

    Returns:
        The group, or None if no group has this name.

    Raises:
        GroupError: if the name is that of a finite group of a size that there is not, or of scales by a factor below 2.
    """
    key = re.sub(r"[\s()\[\],_]", "", name).upper()
    key = ALSO_CALLED.get(key, key)
    scales = re.fullmatch(r"SCALE(\d+)", key)
    if scales:
        return _scales(int(scales[1]))
    finite = finite_group(key)
    if finite is not None:
        return finite
    unitary = re.fullmatch(r"SU([23])", key)
    if unitary:
        return _special_unitary(int(unitary[1]))
    builders = {"SO2": _so2, "O2": _o2, "SO3": _so3, "O3": _o3, "SE3": _se3, "E3": _e3, "SO13": _so13, "O13": _o13}
    return builders[key]() if key in builders else None


def rotations_of(name: str) -> str | None:
    """Return the name of the subgroup without reflections, inversions or reversal of time; None if there is none.

    Example:
        >>> rotations_of("O3"), rotations_of("D6"), rotations_of("SO3")
        ('SO3', 'C6', None)
    """
    named = {"O2": "SO2", "O3": "SO3", "E3": "SE3", "O13": "SO13", "OCTAH": "OCTA", "ICOSAH": "ICOSA"}
    return re.sub(r"^D(\d+)$", r"C\1", name) if re.fullmatch(r"D\d+", name) else named.get(name)


def _so2() -> Group:
    return Group("SO2", _rotation_algebra(2), no_generators(2), ("identity",), False, False, True, rotations=True)


def _o2() -> Group:
    names = ("identity", "reflection")
    return Group("O2", _rotation_algebra(2), diagonals((1, -1)), names, False, False, True, rotations=True)


def _so3() -> Group:
    return Group("SO3", _rotation_algebra(3), no_generators(3), ("identity",), False, False, True, rotations=True)


def _o3() -> Group:
    names = ("identity", "inversion")
    return Group("O3", _rotation_algebra(3), diagonals((-1, -1, -1)), names, False, False, True, rotations=True)


def _se3() -> Group:
    return Group("SE3", _motion_algebra(), no_generators(4), ("identity",), False, True, False, rotations=True)


def _e3() -> Group:
    names = ("identity", "inversion")
    return Group("E3", _motion_algebra(), diagonals((-1, -1, -1, 1)), names, False, True, False, rotations=True)


def _so13() -> Group:
    """Build the proper orthochronous Lorentz group, coordinates (t, x, y, z)."""
    return Group("SO13", _lorentz_algebra(), no_generators(4), ("identity",), False, False, False)


def _o13() -> Group:
    names = ("identity", "parity", "time reversal", "parity and time reversal")
    elements = diagonals((1, -1, -1, -1), (-1, 1, 1, 1), (-1, -1, -1, -1))
    return Group("O13", _lorentz_algebra(), elements, names, False, False, False)


def _scales(factor: int) -> Group:
    """Build the discrete group of scales: 1 x 1 matrices, all powers of one that shrinks lengths by ``factor``."""
    if factor < 2:
        raise GroupError(
            f"expected SCALE<n> with a factor n of at least 2, got SCALE{factor}: write for example SCALE2"
        )
    shrinking = torch.full((1, 1, 1), 1 / factor, dtype=torch.float64)
    return Group(
        f"SCALE{factor}", no_generators(1), shrinking, ("identity", f"shrunk by {factor}"), False, False, False
    )


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


def _special_unitary(size: int) -> Group:
    """Build SU(n) on complex numbers as pairs (re, im), as ``torch.view_as_real`` has them: 2n x 2n matrices."""
    units = torch.eye(size, dtype=torch.complex128)
    pairs = [(units[i].outer(units[j]), units[j].outer(units[i])) for i, j in combinations(range(size), 2)]
    hermitian = [matrix for a, b in pairs for matrix in (a + b, 1j * (b - a))]
    for k in range(1, size):  # the traceless diagonals
        entries = torch.cat([torch.ones(k), torch.tensor([-float(k)]), torch.zeros(size - k - 1)])
        hermitian.append(torch.diag(entries * (2 / (k * (k + 1))) ** 0.5).to(torch.complex128))
    algebra = [-0.5j * matrix for matrix in hermitian]
    one, imaginary = torch.eye(2).double(), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    real = torch.stack([torch.kron(a.real, one) + torch.kron(a.imag, imaginary) for a in algebra])
    return Group(f"SU{size}", real, no_generators(2 * size), ("identity",), False, False, True)
