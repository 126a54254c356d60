"""The two penalty terms of the paper (section 3.1, eq. 5), in the Gram form and in the paper's row form.

With ``L_A(W) = drho_out(A) W - W drho_in(A)`` for generators A of the Lie algebra, and
``L_g(W) = rho_out(g) W - W rho_in(g)`` for one element g of each further component (or each generator of a finite
group), the penalty of a branch is ``|Wx| + sum_A |L_A(W) x| + sum_g |L_g(W) x|``.

Gram form: for detached rows x, ``mean |M x|^2 = tr(M C M^T)`` with ``C = mean x x^T``, so one Gram product serves all
terms; the root is taken per term, which by Jensen's inequality bounds the paper's mean of norms from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.algebra.moments import SecondMoment, in_single
from surgeon.algebra.penalty_settings import PenaltyForm
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.operator import BlockOperator
from surgeon.errors import ShapeError

EPSILON = 1e-12
"""Added under every root, so that the gradient at W = 0 is finite; the square of a norm."""


class Commutator:
    """The maps W -> L_A(W), W -> L_g(W) of one pair of representations, with their operators kept ready.

    Args:
        rho_out: output representation, dimension d_out.
        rho_in: input representation, dimension d_in, of the same group.
    """

    def __init__(self, rho_out: Representation, rho_in: Representation) -> None:
        self.rho_out, self.rho_in = rho_out, rho_in
        pairs = (
            (rho_out.generators(), rho_in.generators()),
            (rho_out.element_actions(), rho_in.element_actions()),
        )
        self._pairs: list[tuple[BlockOperator, BlockOperator]] = [pair for pair in pairs if pair[0].count]
        self._cast: dict[tuple[torch.dtype, torch.device], list[tuple[BlockOperator, BlockOperator]]] = {}

    def __call__(self, weight: Tensor) -> Tensor:
        """Return all defects of ``weight`` (d_out, d_in), stacked: shape (n_generators + n_elements, d_out, d_in)."""
        if weight.shape != (self.rho_out.dimension, self.rho_in.dimension):
            raise ShapeError(
                f"expected W of shape {(self.rho_out.dimension, self.rho_in.dimension)} "
                f"for {self.rho_in} -> {self.rho_out}, got {tuple(weight.shape)}"
            )
        if not self._pairs:
            return weight.new_zeros((0, *weight.shape))
        return torch.cat([out.left(weight) - into.right(weight) for out, into in self.operators(weight)])

    def operators(self, like: Tensor) -> list[tuple[BlockOperator, BlockOperator]]:
        """Return pairs of operators of output and input, in the dtype and on the device of ``like``."""
        # Always cast from float64: operators that went through float32 would stay rounded.
        key = (like.dtype, like.device)
        if key not in self._cast:
            self._cast = {key: [(out.to(like), into.to(like)) for out, into in self._pairs]}
        return self._cast[key]

    def adjoint(self, defects: Tensor) -> Tensor:
        """Return the adjoint of the map applied to a stack: ``sum_A rho_out(A)^T M_A - M_A rho_in(A)^T``.

        Args:
            defects: shape (n_generators + n_elements, d_out, d_in).

        Returns:
            Shape (d_out, d_in).
        """
        total = defects.new_zeros(defects.shape[1:])
        parts = torch.split_with_sizes(defects.mT, [out.count for out, _ in self._pairs])
        for (out, into), part in zip(self.operators(defects), parts, strict=True):
            total = total + (out.right(part) - into.left(part)).sum(0).T
        return total


def _root(squares: Tensor) -> Tensor:
    # Rounding can make tr(M C M^T) slightly negative when M is nearly 0 on the data.
    return torch.sqrt(squares.clamp(min=0) + EPSILON)


@dataclass(frozen=True)
class SitePenalty:
    """Both terms of one site, and the gradient of their sum with respect to its weights.

    Attributes:
        norm: shape (), the term ``|Wx|``.
        defect: shape (), the sum of ``|L_A(W) x|`` over generators and elements.
        gradients: of ``norm + defect``, shaped as the weights.
    """

    norm: Tensor
    defect: Tensor
    gradients: tuple[Tensor, ...]


@torch.no_grad()
def site_penalty(
    weights: Sequence[Tensor],
    moments: SecondMoment,
    commutator: Commutator,
    form: PenaltyForm = "gram",
    count: float | None = None,
) -> SitePenalty:
    """Return the penalty of one site, ``|Wx|`` and ``sum |L(W) x|`` in one of the forms, with its gradient.

    Everything is in closed form: no graph of small operations is built, and nothing is differentiated.

    Args:
        weights: W of shape (d_out, d_in) alone, or A (r, d_in) and B (d_out, r) of ``W = B A``.
        moments: of rows of dimension d_in, at least one.
        commutator: the operators of the site's representations.
        form: "gram" takes the root of the mean square over rows, "rows" the mean of the norms (the paper's), "square"
            the mean square without a root.
        count: what sums over rows are divided by; default the number of rows.

    Returns:
        Values and gradients in the dtype of the weights, of float16 and bfloat16 in float32.

    Raises:
        ShapeError: if a dimension does not match.
    """
    device = weights[0].device.type
    if torch.is_autocast_enabled(device):  # a caller's forward in mixed precision would round all products
        with torch.autocast(device, enabled=False):
            return site_penalty(weights, moments, commutator, form, count)
    if moments.dimension != weights[0].shape[1]:
        raise ShapeError(
            f"expected moments of rows of dimension {weights[0].shape[1]} for W of shape "
            f"{(weights[-1].shape[0], weights[0].shape[1])}, got {moments.dimension}"
        )
    weights = [in_single(weight) for weight in weights]
    rows = moments.rows()
    if rows is not None:
        return _from_rows(weights, rows, commutator, form, float(moments.count if count is None else count))
    return _from_gram(weights, moments.matrix(), commutator, form)


def _from_gram(weights: Sequence[Tensor], moments: Tensor, commutator: Commutator, form: PenaltyForm) -> SitePenalty:
    weight = weights[0] if len(weights) == 1 else weights[1] @ weights[0]
    maps = torch.cat([weight.unsqueeze(0), commutator(weight)])
    products = maps @ moments
    squares = (maps * products).sum(dim=(1, 2))
    terms = squares if form == "square" else _root(squares)
    # d tr(M C M^T) = 2 tr(dM C M^T) for symmetric C
    slopes = products * (2 if form == "square" else 1 / terms[:, None, None])
    gradient = slopes[0] + commutator.adjoint(slopes[1:])
    gradients = (gradient,) if len(weights) == 1 else (weights[1].T @ gradient, gradient @ weights[0].T)
    return SitePenalty(terms[0], terms[1:].sum(), gradients)


def _from_rows(
    weights: Sequence[Tensor], rows: Tensor, commutator: Commutator, form: PenaltyForm, count: float
) -> SitePenalty:
    """The same for few rows x: ``L_A(W) x = drho_out(A) (W x) - W (drho_in(A) x)`` never needs the matrix L_A(W)."""
    outputs = _applied(weights, rows)
    pairs = commutator.operators(rows)
    moved = [into.apply(rows) for _, into in pairs]
    defects = [out.apply(outputs) - _applied(weights, inputs) for (out, _), inputs in zip(pairs, moved, strict=True)]
    values = torch.cat([outputs.unsqueeze(0), *defects])
    terms, directions = _reduced(values, form, count)
    left, right = [directions[0]], [rows]
    parts = torch.split_with_sizes(directions[1:], [out.count for out, _ in pairs])
    for (out, _), part, inputs in zip(pairs, parts, moved, strict=True):
        left[0] = left[0] + out.right(part).sum(0)
        left.append(-part.flatten(0, 1))
        right.append(inputs.flatten(0, 1))
    return SitePenalty(terms[0], terms[1:].sum(), _outer(weights, torch.cat(left), torch.cat(right)))


def _applied(weights: Sequence[Tensor], rows: Tensor) -> Tensor:
    for weight in weights:
        rows = rows @ weight.T
    return rows


def _reduced(values: Tensor, form: PenaltyForm, count: float) -> tuple[Tensor, Tensor]:
    """Return every term, and its derivative by the values; values have shape (1 + terms, rows, d_out)."""
    if form == "rows":
        roots = _root(values.square().sum(-1, keepdim=True))
        return roots.sum(dim=(1, 2)) / count, values / (count * roots)
    squares = values.square().sum(dim=(1, 2)) / count
    if form == "square":
        return squares, values * (2 / count)
    roots = _root(squares)
    return roots, values / (count * roots[:, None, None])


def _outer(weights: Sequence[Tensor], left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients by the weights where that by W is ``left^T right``."""
    if len(weights) == 1:
        return (left.T @ right,)
    a, b = weights
    return (left @ b).T @ right, left.T @ (right @ a.T)
