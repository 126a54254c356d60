"""The smallest eigenvalue of a symmetric map that is known by its products only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 100
"""An eigenvalue below this times the machine epsilon times the largest one is rounding."""

FEWEST = 10
"""Products before an eigenvalue counts as converged: an early one may have missed the smallest."""


@dataclass(frozen=True)
class Smallest:
    """What Lanczos found.

    Attributes:
        value: the smallest Ritz value: ``v^T H v``, never below the smallest eigenvalue.
        vector: v, of norm 1.
        residual: ``|H v - value v|``: an eigenvalue lies within this distance.
        largest: the largest Ritz value.
        products: how many were used.
        converged: whether the residual is small.
    """

    value: float
    vector: Tensor
    residual: float
    largest: float
    products: int
    converged: bool


def smallest_eigenvalue(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    products: int,
    tolerance: float,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Smallest:
    """Lanczos iteration with full reorthogonalisation for the smallest eigenvalue of a symmetric map.

    Args:
        product: the map, shape (n,) to (n,).
        start: shape (n,), norm 1.
        products: how many at most.
        tolerance: ends as soon as the residual is below this share of the eigenvalue.
        project: on a subspace that the map keeps, in which ``start`` lies and to which the search is restricted: what
            rounding leaves outside would grow until the map's eigenvalues there are found.

    Returns:
        See :class:`Smallest`; the basis takes ``products`` vectors of memory.
    """
    basis, diagonal, beside = [start], [], list[float]()
    while True:
        image = product(basis[-1])
        diagonal.append(float((image.double() * basis[-1].double()).sum()))
        for _ in range(2):  # once more, because the first pass leaves rounding of the size of what it takes off
            for vector in basis:
                image = image - (image * vector).sum() * vector
            image = image if project is None else project(image)
        beside.append(float(image.norm()))
        values, vectors = _tridiagonal(diagonal, beside[:-1])
        residual = beside[-1] * abs(float(vectors[-1, 0]))
        scale = float(values.abs().max())
        rounding = ROUNDING * torch.finfo(start.dtype).eps * scale
        exhausted = beside[-1] <= rounding
        converged = exhausted or (len(basis) >= FEWEST and residual <= max(tolerance * abs(float(values[0])), rounding))
        if converged or len(basis) == products:
            break
        basis.append(image / beside[-1])
    found = torch.stack([float(weight) * vector for weight, vector in zip(vectors[:, 0], basis, strict=True)]).sum(0)
    return Smallest(float(values[0]), found / found.norm(), residual, float(values[-1]), len(basis), converged)


def _tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[Tensor, Tensor]:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors
