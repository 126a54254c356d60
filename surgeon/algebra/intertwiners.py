"""The intertwiners of sums of irreps: their copies, and the average P(W) of a dense W over the group.

For irreps of real type (all of SO(3) and O(3)) the block of an intertwiner from copy u to copy v of the same irrep is
a multiple of the identity, ``a_vu = (1/d) sum_m W[(v,m),(u,m)]``, and every block between different irreps is 0
(Schur's lemma; docs/method.md, "Fold instead of drop").
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from surgeon.algebra.representations.core import Representation
from surgeon.errors import GroupError, ShapeError


def irrep_label(rho: Representation, irrep: str) -> str:
    """Return the name under which copies of an irrep ("1o") are equivalent: without the parity under SO(3), SE(3)."""
    return irrep.rstrip("eo") if rho.group.name in ("SO3", "SE3") else irrep


def copy_indices(rho: Representation) -> dict[str, Tensor]:
    """Return, per irrep, the flat indices of each of its copies.

    Args:
        rho: direct sum of irreps, vectors and invariants.

    Returns:
        Irrep name ("0e", "1o"; under SO(3) the parity is left out: "0", "1") to a long tensor of shape (copies, d).

    Raises:
        GroupError: if a block is not a plain sum of copies of one irrep.
    """
    found: dict[str, list[Tensor]] = {}
    for block in rho.blocks:
        index = torch.arange(block.start, block.start + block.size).reshape(block.shape)
        if not block.factors:
            label, index = irrep_label(rho, "0e"), index.reshape(-1, 1)
        elif len(block.factors) == 1 and _is_real_type(rho, block.factors[0][1].kind):
            axis, factor = block.factors[0]
            label = irrep_label(rho, "1o" if factor.kind == "vector" else str(factor))
            index = index.movedim(axis, -1).reshape(-1, block.shape[axis])
        else:
            raise GroupError(f"expected a direct sum of irreps, got {rho}: the average is implemented for irreps only")
        found.setdefault(label, []).append(index)
    return {label: torch.cat(parts) for label, parts in found.items()}


def _is_real_type(rho: Representation, kind: str) -> bool:
    """Tell whether intertwiners of an irreducible factor are multiples of the identity; not so in two dimensions."""
    return kind == "irrep" or (kind == "vector" and rho.group.vector_dimension > 2 and rho.group.rotations)


def spread_over_copies(values: Tensor, rows: Tensor, columns: Tensor, into: Tensor) -> Tensor:
    """Return ``into`` with ``a_vu`` times the identity from copy u to copy v.

    Args:
        values: a, shape (n_out, n_in).
        rows: flat indices of the output's copies, shape (n_out, d).
        columns: the same for the input, shape (n_in, d).
        into: shape (d_out, d_in).
    """
    expanded = values[..., None].expand(-1, -1, rows.shape[1])
    return into.index_put((rows[:, None, :], columns[None, :, :]), expanded)


def average(weight: Tensor, rho_out: Representation, rho_in: Representation) -> Tensor:
    """Return P(W), the orthogonal projection of W on the intertwiners (its average over the group).

    Args:
        weight: shape (d_out, d_in).
        rho_out: representation of dimension d_out, a direct sum of irreps.
        rho_in: representation of dimension d_in, a direct sum of irreps.

    Returns:
        Shape (d_out, d_in); commutes with the group exactly up to rounding; differentiable.

    Raises:
        ShapeError: if a dimension does not match its representation.
        GroupError: if a representation is not a direct sum of irreps.
    """
    if weight.shape != (rho_out.dimension, rho_in.dimension):
        raise ShapeError(
            f"expected W of shape {(rho_out.dimension, rho_in.dimension)} for {rho_in} -> {rho_out}, "
            f"got {tuple(weight.shape)}"
        )
    result = torch.zeros_like(weight)
    for values, rows, columns in _coefficients(weight, rho_out, rho_in):
        result = spread_over_copies(values, rows, columns, result)
    return result


def norm_of_average(weight: Tensor, rho_out: Representation, rho_in: Representation) -> float:
    """Return the Frobenius norm of :func:`average`, in float64 and without a matrix as large as W."""
    parts = _coefficients(weight, rho_out, rho_in)
    return math.sqrt(sum(rows.shape[1] * float(values.double().square().sum()) for values, rows, _ in parts))


def _coefficients(
    weight: Tensor, rho_out: Representation, rho_in: Representation
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield by irrep the multiples of the identity of which P(W) is made, and the indices of the copies they join."""
    columns_of = copy_indices(rho_in)
    for label, rows in copy_indices(rho_out).items():
        if label in columns_of:
            rows, columns = rows.to(weight.device), columns_of[label].to(weight.device)
            yield weight[rows[:, None, :], columns[None, :, :]].mean(-1), rows, columns


def frobenius(weight: Tensor) -> float:
    """Return the Frobenius norm, taken in float64 of some rows at a time."""
    return math.sqrt(sum(float(rows.double().square().sum()) for rows in torch.split(weight, 256)))
