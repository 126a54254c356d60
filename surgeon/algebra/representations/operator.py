"""Block-wise linear operators: what a representation does to features, without a dense d x d matrix."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from surgeon.errors import ShapeError


@dataclass(frozen=True)
class OperatorBlock:
    """What a stack of n operators does to one slice of the feature axis.

    Attributes:
        start: first index of the slice.
        shape: the slice is reshaped, row-major, to this shape.
        factors: pairs (axis, matrices of shape (n, f, f)), f the length of that axis; the other axes are copies.
    """

    start: int
    shape: tuple[int, ...]
    factors: tuple[tuple[int, Tensor], ...]

    @cached_property
    def size(self) -> int:
        """Length of the slice."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, eq=False)
class BlockOperator:
    """A stack of n linear operators rho on R^d, each a direct sum of blocks.

    In an action a block is the tensor product of its factors, and the identity without any. In a derivative it is their
    Leibniz sum (A x 1 + 1 x B), and zero without any.

    Attributes:
        count: n, the number of operators.
        blocks: cover the feature axis in order.
        kind: "action" or "derivative".
    """

    count: int
    dimension: int
    blocks: tuple[OperatorBlock, ...]
    kind: Literal["action", "derivative"]

    def left(self, matrix: Tensor) -> Tensor:
        """Return rho @ matrix.

        Args:
            matrix: shape (d, m), or (n, d, m) for one matrix per operator.

        Returns:
            Shape (n, d, m), in the operator's dtype.

        Raises:
            ShapeError: if ``matrix`` does not have d rows.
        """
        stack = self._stacked(matrix, axis=-2)
        return self._multiply(stack.unsqueeze(1), transpose=False).squeeze(1)

    def right(self, matrix: Tensor) -> Tensor:
        """Return matrix @ rho.

        Args:
            matrix: shape (m, d), or (n, m, d) for one matrix per operator.

        Returns:
            Shape (n, m, d), in the operator's dtype.

        Raises:
            ShapeError: if ``matrix`` does not have d columns.
        """
        stack = self._stacked(matrix, axis=-1)
        return self._multiply(stack.unsqueeze(-1), transpose=True).squeeze(-1)

    def apply(self, x: Tensor) -> Tensor:
        """Return x @ rho^T: act on features.

        Args:
            x: shape (..., d).

        Returns:
            Shape (n, ..., d), in the operator's dtype.

        Raises:
            ShapeError: if the last axis of ``x`` is not d.
        """
        self._check(x, axis=-1, needed=1)
        rows = x.reshape(1, -1, self.dimension, 1)
        return self._multiply(rows, transpose=False).reshape(self.count, *x.shape)

    def dense(self) -> Tensor:
        """Return the operators as matrices of shape (n, d, d): slow, for tests and small d."""
        return self.left(torch.eye(self.dimension, dtype=self._like.dtype, device=self._like.device))

    def to(self, like: Tensor) -> BlockOperator:
        """Return the same operators in the dtype and on the device of ``like``."""
        if self._like.dtype == like.dtype and self._like.device == like.device:
            return self
        cast = {id(m): m.to(like) for block in self.blocks for _, m in block.factors}
        blocks = tuple(
            OperatorBlock(block.start, block.shape, tuple((axis, cast[id(m)]) for axis, m in block.factors))
            for block in self.blocks
        )
        return dataclasses.replace(self, blocks=blocks)

    @cached_property
    def _like(self) -> Tensor:
        """A tensor with the dtype and device of the operators."""
        matrices = [m for block in self.blocks for _, m in block.factors]
        return matrices[0] if matrices else torch.empty(0, dtype=torch.float64)

    def _check(self, tensor: Tensor, axis: int, needed: int) -> None:
        if tensor.ndim < needed or tensor.shape[axis] != self.dimension:
            raise ShapeError(
                f"expected {self.dimension} entries, the dimension of the representation, along axis {axis}, got shape "
                f"{tuple(tensor.shape)}: pass features or weights in this representation's layout"
            )

    def _stacked(self, matrix: Tensor, axis: int) -> Tensor:
        self._check(matrix, axis, needed=2)
        stack = matrix if matrix.ndim == 3 else matrix.unsqueeze(0)
        if stack.ndim != 3 or stack.shape[0] not in (1, self.count):
            raise ShapeError(
                f"expected one matrix, or one for each of {self.count} operators, got shape {tuple(matrix.shape)}: "
                "pass two axes, or three with the operators first"
            )
        return stack

    def _multiply(self, x: Tensor, transpose: bool) -> Tensor:
        """Contract axis 2 of ``x``, shape (1 or n, p, d, q), with rho or its transpose; return (n, p, d, q)."""
        pieces = []
        for block in self.blocks:
            piece = x[:, :, block.start : block.start + block.size]
            pieces.append(self._multiply_block(block, piece, transpose).expand(self.count, -1, -1, -1))
        return torch.cat(pieces, dim=2)

    def _multiply_block(self, block: OperatorBlock, x: Tensor, transpose: bool) -> Tensor:
        if self.kind == "action":
            for axis, matrices in block.factors:
                x = _along_axis(x, block.shape, axis, matrices.mT if transpose else matrices)
            return x
        if not block.factors:
            return torch.zeros_like(x[:1])
        terms = [_along_axis(x, block.shape, a, m.mT if transpose else m) for a, m in block.factors]
        return sum(terms[1:], start=terms[0])


def _along_axis(x: Tensor, shape: tuple[int, ...], axis: int, matrices: Tensor) -> Tensor:
    """Apply (n, f, f) matrices along one axis of the block; x is (1 or n, p, size, q), the result (n, p, size, q)."""
    n, p, size, q = x.shape
    f = shape[axis]
    outer = p * torch.Size(shape[:axis]).numel()
    inner = q * torch.Size(shape[axis + 1 :]).numel()
    if inner == 1:
        result = torch.matmul(x.reshape(n, outer, f), matrices.mT)
    else:
        result = torch.matmul(matrices.unsqueeze(1), x.reshape(n, outer, f, inner))
    return result.reshape(len(matrices), p, size, q)
