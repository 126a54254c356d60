"""Both terms of the penalty from their formulas, by autograd: what the engine computes in closed form."""

from __future__ import annotations

from torch import Tensor

from surgeon.algebra.penalty import EPSILON, Commutator
from surgeon.algebra.representations.core import Representation


def root(squares: Tensor) -> Tensor:
    return (squares.clamp(min=0) + EPSILON).sqrt()


def norm_penalty(weight: Tensor, moments: Tensor) -> Tensor:
    """Return ``sqrt(tr(W C W^T) + eps)``, for W (d_out, d_in) and C (d_in, d_in)."""
    return root(((weight @ moments) * weight).sum())


def commutator_penalty(weight: Tensor, rho_out: Representation, rho_in: Representation, moments: Tensor) -> Tensor:
    """Return ``sum_A sqrt(tr(L_A(W) C L_A(W)^T) + eps)``."""
    defects = Commutator(rho_out, rho_in)(weight)
    return root(((defects @ moments) * defects).sum(dim=(1, 2))).sum()


def norm_penalty_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of ``|W x|`` over rows (n, d_in): the first term of eq. 5 as printed."""
    return root((rows @ weight.T).square().sum(-1)).mean()


def commutator_penalty_rows(weight: Tensor, rho_out: Representation, rho_in: Representation, rows: Tensor) -> Tensor:
    """Return the mean of ``|L_A(W) x|`` over rows, summed over generators and elements: section 3.1 as printed."""
    return defect_rows(Commutator(rho_out, rho_in), weight, rows)


def defect_rows(commutator: Commutator, weight: Tensor, rows: Tensor) -> Tensor:
    """The same for operators that are at hand."""
    return root((rows @ commutator(weight).mT).square().sum(-1)).mean(-1).sum()
