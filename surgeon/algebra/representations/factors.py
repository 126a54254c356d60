"""How one axis of a block transforms: an irrep of O(3), a vector, or the regular representation."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.grids import grid_action, grid_derivative, grid_points
from surgeon.algebra.representations.images import image_size, images_of_algebra, images_of_elements
from surgeon.errors import GroupError

ELEMENT_TOLERANCE = 1e-5
"""Elements and generators may come from float32."""


@dataclass(frozen=True)
class Factor:
    """A representation that acts on one axis.

    Attributes:
        kind: "irrep" of O(3), "vector" (the linear part itself), "regular" (permutes a finite group's elements),
            "matrices" (given by the images of the generators), or "grid" (moves the points of a grid).
        degree: l of an irrep.
        parity: +1 or -1; sign of an irrep under inversion.
        data: JSON that describes matrices or a grid.
    """

    kind: Literal["irrep", "vector", "regular", "matrices", "grid"]
    degree: int = 0
    parity: int = 1
    data: str = ""

    def __str__(self) -> str:
        """Irreps in e3nn's notation, else the kind."""
        return f"{self.degree}{'e' if self.parity == 1 else 'o'}" if self.kind == "irrep" else self.kind

    def size(self, group: Group) -> int:
        """Length of the axis."""
        if self.kind == "irrep":
            return 2 * self.degree + 1
        if self.kind == "matrices":
            return image_size(self.data)
        if self.kind == "grid":
            return grid_points(self.data)
        return group.vector_dimension if self.kind == "vector" else len(group.all_elements())

    def action(self, group: Group, linear: Tensor) -> Tensor:
        """Matrices of group elements, given by their linear parts: (n, d, d) to (n, f, f), float64."""
        match self.kind:
            case "vector":
                return linear
            case "irrep":
                return _irrep_action(self, linear)
            case "matrices":
                return images_of_elements(group, self.data, linear)
            case "grid":
                return grid_action(self.data, linear)
            case _:
                return _regular_action(group, linear)

    def derivative(self, group: Group, linear: Tensor) -> Tensor | None:
        """Matrices of Lie-algebra elements, (n, d, d) to (n, f, f), float64; None if they are all zero."""
        if self.kind == "vector":
            return linear
        if self.kind == "matrices":
            return images_of_algebra(group, self.data, linear)
        if self.kind == "grid":
            return grid_derivative(self.data, linear)
        if self.kind == "regular" or self.degree == 0:
            return None
        velocities = _angular_velocities(linear)
        return linear if self.degree == 1 else torch.einsum("na,aij->nij", velocities, irrep_generators(self.degree))


@lru_cache(maxsize=32)
def irrep_generators(degree: int) -> Tensor:
    """Generators of rotations about x, y, z in the real irrep l, in e3nn's basis.

    Spherical harmonics with polar axis y, so that l = 1 is (x, y, z): s_l, ..., s_1, c_0, c_1, ..., c_l with
    c_m = ((-1)^m |m> + |-m>) / sqrt(2) and s_m = ((-1)^m |m> - |-m>) / (i sqrt(2)).

    Args:
        degree: l.

    Returns:
        Shape (3, 2l+1, 2l+1), float64, antisymmetric; kept, so not to be written to.
    """
    m = torch.arange(-degree, degree + 1, dtype=torch.float64)
    raising = torch.diag(torch.sqrt(degree * (degree + 1) - m[:-1] * (m[:-1] + 1)), diagonal=-1)
    polar = torch.diag(m).to(torch.complex128)
    first, second = (raising + raising.T) / 2, (raising - raising.T) / 2j
    # Polar axis y, then cyclically: the textbook's (x, y, z) are (z, x, y) here.
    hermitian = torch.stack([second, polar, first.to(torch.complex128)])
    real_basis = _real_basis(degree)
    return (real_basis.mH @ (-1j * hermitian) @ real_basis).real.contiguous()


def _real_basis(degree: int) -> Tensor:
    """Columns: s_l, ..., s_1, c_0, c_1, ..., c_l in terms of |-l>, ..., |l>."""
    real, imaginary = torch.zeros(2, 2 * degree + 1, 2 * degree + 1, dtype=torch.float64)
    real[degree, degree] = 1.0
    for m in range(1, degree + 1):
        positive, negative = (-1) ** m / 2**0.5, 1 / 2**0.5
        real[degree + m, degree + m], real[degree - m, degree + m] = positive, negative
        imaginary[degree + m, degree - m], imaginary[degree - m, degree - m] = -positive, negative
    return torch.complex(real, imaginary)


def _irrep_action(factor: Factor, linear: Tensor) -> Tensor:
    determinants = check_orthogonal(linear).sign()
    signs = torch.where(determinants < 0, float(factor.parity), 1.0).to(torch.float64)[:, None, None]
    if factor.degree == 0 or not len(linear):
        return signs.expand(-1, 2 * factor.degree + 1, 2 * factor.degree + 1)
    if factor.degree == 1:
        return signs * determinants[:, None, None] * linear
    vectors = _rotation_vectors(determinants[:, None, None] * linear)
    exponents = torch.einsum("na,aij->nij", vectors, irrep_generators(factor.degree))
    return torch.mul(signs, torch.linalg.matrix_exp(exponents))


def check_orthogonal(linear: Tensor) -> Tensor:
    """Return the determinants of orthogonal matrices; shape (n, d, d) to (n,).

    Raises:
        GroupError: if one is not orthogonal.
    """
    if len(linear):
        deviation = float((linear @ linear.mT - torch.eye(linear.shape[-1], dtype=linear.dtype)).abs().max())
        if not deviation <= ELEMENT_TOLERANCE:
            raise GroupError(
                f"expected orthogonal matrices for a representation by irreps, got one that deviates by "
                f"{deviation:.1e}: pass elements of the group in the defining representation"
            )
    determinants: Tensor = torch.linalg.det(linear)
    return determinants


def _rotation_vectors(rotations: Tensor) -> Tensor:
    """Axis times angle; stable near the identity and near half turns, where Euler angles and the logarithm are not."""
    rotation = importlib.import_module("scipy.spatial.transform").Rotation
    vectors: Tensor = torch.from_numpy(rotation.from_matrix(rotations.numpy()).as_rotvec())
    return vectors


def _angular_velocities(linear: Tensor) -> Tensor:
    """Coordinates of so(3) elements in the rotations about x, y, z."""
    scale = max(1.0, float(linear.abs().max())) if linear.numel() else 1.0
    if bool(((linear + linear.mT).abs() > ELEMENT_TOLERANCE * scale).any()):
        raise GroupError(
            "expected antisymmetric generators for a representation by irreps, got a matrix that is not: "
            "pass elements of the Lie algebra in the defining representation"
        )
    return torch.stack([linear[:, 2, 1], linear[:, 0, 2], linear[:, 1, 0]], dim=1)


def _regular_action(group: Group, linear: Tensor) -> Tensor:
    """Permutation matrices: g maps the basis vector of h to that of g h."""
    elements = group.linear(group.all_elements())
    order = len(elements)
    actions = torch.zeros(len(linear), order, order, dtype=torch.float64)
    for action, g in zip(actions, linear, strict=True):
        distances = torch.cdist((g @ elements).flatten(1), elements.flatten(1))
        nearest, index = distances.min(dim=1)
        if not float(nearest.max()) <= ELEMENT_TOLERANCE * max(1.0, float(elements.abs().max())):
            raise GroupError(
                f"expected an element of {group.name}, got a matrix at distance {float(nearest.max()):.1e} from all "
                f"{order}: draw elements with Group.sample or Group.all_elements"
            )
        action[index, torch.arange(order)] = 1.0
    return actions
