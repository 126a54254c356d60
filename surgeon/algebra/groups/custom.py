"""Groups given by the user as matrices."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.named import named_group
from surgeon.errors import GroupError

CLOSURE_TOLERANCE = 1e-6
"""Relative; generators may come from float32."""


def group_from_generators(
    name: str, algebra: Tensor | None, elements: Tensor | None = None, *, compact: bool = False
) -> Group:
    """Build a group from a basis of its Lie algebra, or a finite group from a generating set.

    Args:
        name: any name that is not that of a built-in group.
        algebra: shape (n_generators, k, k), linearly independent and closed under the bracket; None for a finite group.
        elements: shape (n, k, k), one element of each component other than the identity's; without ``algebra``
            generators of the finite group.
        compact: True if the identity component is compact, so that the Haar measure can be sampled.

    Returns:
        The group; its components are called "identity", "element 1", ...

    Raises:
        GroupError: if the matrices do not define a group.

    Example:
        >>> boost = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> group_from_generators("SO11", boost).component_names
        ('identity',)
    """
    if named_group(name) is not None:
        raise GroupError(f"expected a new name for a user-defined group, got {name!r}, which is built in: rename it")
    if algebra is None:
        return _finite_group(name, elements)
    generators = _matrices(name, "algebra", algebra)
    element_matrices = generators[:0] if elements is None else _matrices(name, "elements", elements)
    _check_algebra(name, generators, compact)
    _check_elements(name, generators, element_matrices)
    names = ("identity", *(f"element {index + 1}" for index in range(len(element_matrices))))
    return Group(name, generators, element_matrices, names, False, False, compact)


def _finite_group(name: str, elements: Tensor | None) -> Group:
    if elements is None:
        raise GroupError(f"expected generators or elements of {name}, got neither: give at least one matrix")
    elements = _matrices(name, "elements", elements)
    determinants = torch.linalg.det(elements).abs()
    if not torch.allclose(determinants, torch.ones_like(determinants), rtol=0, atol=CLOSURE_TOLERANCE):
        raise GroupError(
            f"expected elements of the finite group {name} with determinant 1 or -1, got absolute values "
            f"{determinants.tolist()}: no power of another matrix is the identity"
        )
    group = Group(name, torch.zeros_like(elements[:0]), elements, ("all elements",), True, False, True)
    group.all_elements()
    return group


def _matrices(name: str, what: str, given: Tensor) -> Tensor:
    matrices = given.detach().to("cpu", torch.float64).clone()
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or 0 in matrices.shape[:2]:
        raise GroupError(
            f"expected the {what} of {name} to have shape (n, k, k) with n and k at least 1, got "
            f"{tuple(matrices.shape)}: stack square matrices"
        )
    if not bool(torch.isfinite(matrices).all()):
        raise GroupError(f"expected finite numbers in the {what} of {name}, got nan or infinity: correct the matrices")
    return matrices


def _check_algebra(name: str, algebra: Tensor, compact: bool) -> None:
    rank = int(torch.linalg.matrix_rank(algebra.flatten(1), rtol=CLOSURE_TOLERANCE))
    if rank < len(algebra):
        raise GroupError(
            f"expected linearly independent generators of {name}, got {len(algebra)} that span {rank} dimensions: "
            "leave out those that are zero or combinations of others"
        )
    for i, j in combinations(range(len(algebra)), 2):
        bracket = algebra[i] @ algebra[j] - algebra[j] @ algebra[i]
        deviation = _distance_to_span(algebra, bracket) / float(algebra[i].norm() * algebra[j].norm())
        if deviation > CLOSURE_TOLERANCE:
            raise GroupError(
                f"expected the generators of {name} to be closed under the bracket, but that of generators {i} and {j} "
                f"leaves their span by {deviation:.1e} of its scale: correct them or add the missing generators"
            )
    # The trace form is negative definite on matrices that generate only bounded motions.
    if compact and float(torch.linalg.eigvalsh(torch.einsum("aij,bji->ab", algebra, algebra)).max()) >= 0:
        raise GroupError(
            f"expected generators of bounded motions for the compact group {name}, got one whose exponentials grow: "
            "pass compact=False"
        )


def _check_elements(name: str, algebra: Tensor, elements: Tensor) -> None:
    if elements.shape[1:] != algebra.shape[1:]:
        raise GroupError(
            f"expected elements of {name} of the generators' size {tuple(algebra.shape[1:])}, got "
            f"{tuple(elements.shape[1:])}: use one defining representation"
        )
    for index, element in enumerate(elements):
        if int(torch.linalg.matrix_rank(element)) < len(element):
            raise GroupError(f"expected invertible elements of {name}, got a singular one at index {index}: correct it")
        images = element @ algebra @ torch.linalg.inv(element)
        deviation = max(_distance_to_span(algebra, image) / float(image.norm()) for image in images)
        if deviation > CLOSURE_TOLERANCE:
            raise GroupError(
                f"expected element {index} of {name} to map the Lie algebra to itself, but conjugation by it leaves "
                f"the algebra by {deviation:.1e} of its scale: correct it or add the missing generators"
            )


def _distance_to_span(basis: Tensor, matrix: Tensor) -> float:
    columns = basis.flatten(1).T
    coefficients = torch.linalg.pinv(columns) @ matrix.flatten()
    return float((columns @ coefficients - matrix.flatten()).norm())
