"""Projections of a dense W on intertwiners: P(W) for irreps, and P_op(W) on what an op's own weights can produce.

For irreps of real type (all of SO(3) and O(3)) the block of an intertwiner from copy u to copy v of the same irrep is
a multiple of the identity, ``a_vu = (1/d) sum_m W[(v,m),(u,m)]``, and every block between different irreps is 0
(Schur's lemma; docs/method.md, "Fold instead of drop").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


def _diagonal_mean(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return weight[rows[:, None, :], columns[None, :, :]].mean(-1)


def _spread(values: Tensor, rows: Tensor, columns: Tensor, into: Tensor) -> Tensor:
    expanded = values[..., None].expand(-1, -1, rows.shape[1])
    return into.index_put((rows[:, None, :], columns[None, :, :]), expanded)


class _SelfAdjoint(torch.autograd.Function):
    """Apply an orthogonal projection; its gradient is the same projection, far cheaper than that of the indexing."""

    @staticmethod
    def forward(context: Any, weight: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``project(weight)``."""
        context.project = project
        return project(weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Project the gradient, differentiably."""
        return _SelfAdjoint.apply(gradient, context.project), None  # type: ignore[no-untyped-call]


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
    columns_of = copy_indices(rho_in)
    result = torch.zeros_like(weight)
    for label, rows in copy_indices(rho_out).items():
        if label in columns_of:
            rows, columns = rows.to(weight.device), columns_of[label].to(weight.device)
            result = _spread(_diagonal_mean(weight, rows, columns), rows, columns, result)
    return result


@dataclass(frozen=True, eq=False)
class WeightEntries:
    """How an op's weights enter the multiplicity-level matrix a of one irrep: each weight enters one entry.

    Attributes:
        rows: shape (n_out, d), long: flat output index of component m of output copy v.
        columns: shape (n_in, d), long: the same for input copies u.
        weight: shape (k,), long: positions in the flattened parameter.
        out_copy: shape (k,), long: which output copy the weight writes to.
        in_copy: shape (k,), long: which input copy it reads from.
        coefficient: shape (k,), float64: the entry ``a[out_copy, in_copy]`` that a weight of 1 contributes.
    """

    rows: Tensor
    columns: Tensor
    weight: Tensor
    out_copy: Tensor
    in_copy: Tensor
    coefficient: Tensor

    def square_sums(self) -> Tensor:
        """Return, per entry of a, the sum of squared coefficients: 0 where the op has no path; shape (n_out, n_in)."""
        sums = torch.zeros(len(self.rows), len(self.columns), dtype=torch.float64, device=self.coefficient.device)
        return sums.index_put((self.out_copy, self.in_copy), self.coefficient**2, accumulate=True)

    def to(self, device: torch.device) -> WeightEntries:
        """Return the same entries with all index tensors on ``device``."""
        fields = (self.rows, self.columns, self.weight, self.out_copy, self.in_copy, self.coefficient)
        return WeightEntries(*(tensor.to(device) for tensor in fields))


class FoldMap:
    """The span of intertwiners that one parameter of an op can produce, and the way back to that parameter.

    Attributes:
        parameter: its name.
        entries: irrep to how the weights enter.
        shape: (d_out, d_in).
        holds_while: what the coefficients take for constant of the op's other arguments, in words; empty for nothing.
    """

    def __init__(
        self, parameter: str, entries: Mapping[str, WeightEntries], shape: tuple[int, int], holds_while: str = ""
    ) -> None:
        self.parameter, self.holds_while = parameter, holds_while
        self.entries = {label: part for label, part in entries.items() if len(part.weight)}
        self.shape = shape
        self._masks = {label: part.square_sums() > 0 for label, part in self.entries.items()}

    def _move_to(self, device: torch.device) -> None:
        for label, part in self.entries.items():
            if part.rows.device != device:
                self.entries[label] = part.to(device)
                self._masks[label] = self._masks[label].to(device)

    def project(self, weight: Tensor) -> Tensor:
        """Return P_op(W): the intertwiner nearest to W among those that the op's own weights can produce.

        Args:
            weight: shape (d_out, d_in).

        Returns:
            Shape (d_out, d_in), differentiable in ``weight``.
        """
        self._move_to(weight.device)
        projected: Tensor = _SelfAdjoint.apply(weight, self._project)  # type: ignore[no-untyped-call]
        return projected

    def _project(self, weight: Tensor) -> Tensor:
        result = torch.zeros_like(weight)
        for label, part in self.entries.items():
            a = _diagonal_mean(weight, part.rows, part.columns) * self._masks[label]
            result = _spread(a, part.rows, part.columns, result)
        return result

    def weight_change(self, weight: Tensor, size: int) -> Tensor:
        """Return the change of the op's flattened parameter that adds P_op(W) to the op.

        Where several paths serve one pair of copies, the minimum-norm split is taken:
        ``dw_k = c_k a / sum c^2``.

        Args:
            weight: W, shape (d_out, d_in).
            size: number of entries of the parameter.

        Returns:
            Shape (size,), dtype of ``weight``; the split is computed in float64.
        """
        self._move_to(weight.device)
        means = {
            label: _diagonal_mean(weight.double(), part.rows, part.columns) for label, part in self.entries.items()
        }
        return self.parameter_change(means, size).to(weight)

    def map_change(self, change: Tensor) -> Tensor:
        """Return what a change of the op's parameter does to its linear map; the converse of :meth:`weight_change`.

        Args:
            change: of the flattened parameter, shape (size,).

        Returns:
            Shape (d_out, d_in), float64.
        """
        self._move_to(change.device)
        result = torch.zeros(self.shape, dtype=torch.float64, device=change.device)
        for part in self.entries.values():
            a = torch.zeros(len(part.rows), len(part.columns), dtype=torch.float64, device=change.device)
            index = (part.out_copy, part.in_copy)
            a.index_put_(index, part.coefficient * change.double()[part.weight], accumulate=True)
            result = _spread(a, part.rows, part.columns, result)
        return result

    def coverage(self, rho_out: Representation, rho_in: Representation) -> str:
        """Say how much of the space of intertwiners the op's weights reach; empty if all of it.

        Raises:
            GroupError: if a representation is not a direct sum of irreps.
        """
        outputs, inputs = copy_indices(rho_out), copy_indices(rho_in)
        total = sum(len(rows) * len(inputs[label]) for label, rows in outputs.items() if label in inputs)
        reached = sum(int(mask.sum()) for mask in self._masks.values())
        return "" if reached == total else f"its weights reach {reached} of {total} intertwiner dimensions"

    def parameter_change(self, matrices: Mapping[str, Tensor], size: int) -> Tensor:
        """Return the change of the op's flattened parameter that adds multiplicity-level matrices a.

        Args:
            matrices: irrep to a, shape (n_out, n_in); entries that the op has no path for are lost.
            size: number of entries of the parameter.

        Returns:
            Shape (size,), float64, differentiable.
        """
        device = next((matrix.device for matrix in matrices.values()), torch.device("cpu"))
        self._move_to(device)
        change = torch.zeros(size, dtype=torch.float64, device=device)
        for label, part in self.entries.items():
            ratio = matrices[label][part.out_copy, part.in_copy] / part.square_sums()[part.out_copy, part.in_copy]
            change = change.index_put((part.weight,), part.coefficient * ratio)
        return change
