"""SOAP on the matrices of multiplicities: Adam in the eigenbasis of the covariance of gradients.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (ICLR 2025). For a block with gradient G the means
L = E[G G^T] and R = E[G^T G] are kept, and Adam's squares are those of Q_L^T G Q_R, with the eigenvectors of L and R in
the columns of Q_L and Q_R.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.optim.adam import BETAS, Groups, MatrixOptimizer, Moving, adam_updates, require_settings

EVERY, LARGEST = 10, 512

SIDES = ("left", "right")
MEANS = ("exp_avg", "exp_avg_sq")
"""Slots of gradients and of their squares, both expressed in the bases."""


class Soap(MatrixOptimizer):
    """SOAP on blocks, AdamW on everything else.

    Args:
        params: parameters, or groups.
        lr: learning rate; of the size that suits AdamW, or twice that.
        betas: decay of the mean of gradients; and of the mean square and both covariances.
        eps: added to the root of the mean square.
        weight_decay: decoupled.
        every: steps between refreshes of the bases, each by one QR decomposition.
        largest: sides above this have no covariance and keep their own basis.

    Raises:
        UsageError: if a value is unusable.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        every: int = EVERY,
        largest: int = LARGEST,
    ) -> None:
        require_settings(
            lambda: all(isinstance(value, int) and value >= 1 for value in (every, largest)),
            "whole numbers of at least 1 as every and largest",
            *(every, largest),
        )
        super().__init__(params, lr, betas, eps, weight_decay, {"every": every, "largest": largest})

    def _step_group(self, moving: Sequence[Moving], group: Mapping[str, Any]) -> None:
        blocks = []
        for each in moving:
            own = list(_preconditioned(each, group["largest"]))
            # Numbers beside them keep their gradient.
            whole = sum(block.size for block in own) == each.gradient.numel()
            each.update = torch.empty_like(each.gradient) if whole else each.gradient.clone()
            blocks += own
        for block in blocks:
            gradient = block.of(block.each.gradient)
            block.accumulate(gradient, group["betas"][1])
            block.turned(gradient, out=block.of(block.each.update))
        adam_updates(moving, group)
        for block in blocks:
            update = block.of(block.each.update)
            update.copy_(block.turned(update, back=True))
            if block.each.step % group["every"] == 0:
                block.refresh()


def _preconditioned(each: Moving, largest: int) -> Iterator[_Preconditioned]:
    """Yield the blocks that have bases, which begin with the first gradient that is not 0: that has no eigenvectors."""
    for number, block in enumerate(each.blocks):
        sides = [side for side, size in zip(SIDES, block.shape, strict=True) if size <= largest]
        if sides and f"{sides[0]}_{number}" not in each.state:
            gradient = block.of(each.gradient)
            if not bool(gradient.any()):
                continue
            for side in sides:
                covariance = gradient @ gradient.mT if side == "left" else gradient.mT @ gradient
                each.state[f"{side}_{number}"] = covariance
                each.state[f"{side}_basis_{number}"] = first_basis(covariance)
        if sides:
            yield _Preconditioned(each, number)


def first_basis(covariance: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix in columns, largest eigenvalue first."""
    scale = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    vectors: Tensor = torch.linalg.eigh(covariance / scale + 1e-10 * identity).eigenvectors
    return vectors.flip(-1).contiguous()


class _Preconditioned:
    """A block with bases on the left, on the right, or on both sides."""

    def __init__(self, each: Moving, number: int) -> None:
        self.each, self.size, self.of = each, each.blocks[number].size, each.blocks[number].of
        self.covariances = [each.state.get(f"{side}_{number}") for side in SIDES]
        self.bases = [each.state.get(f"{side}_basis_{number}") for side in SIDES]

    def accumulate(self, gradient: Tensor, decay: float) -> None:
        """Take a gradient into the covariances."""
        for covariance, rows in zip(self.covariances, (gradient, gradient.mT), strict=True):
            if covariance is not None:
                covariance.addmm_(rows, rows.mT, beta=decay, alpha=1 - decay)

    def turned(self, matrix: Tensor, back: bool = False, out: Tensor | None = None) -> Tensor:
        """Return a matrix expressed in the bases; or back in its own."""
        left, right = self.bases
        factors = [left if back or left is None else left.mT, matrix, right.mT if back and right is not None else right]
        result: Tensor = torch.linalg.multi_dot([factor for factor in factors if factor is not None], out=out)
        return result

    def refresh(self) -> None:
        """Bring the bases nearer to the eigenvectors by orthogonal iteration; squares stay with their columns."""
        mean, square = (self.of(self.each.state[slot]) for slot in MEANS)
        for axis, (covariance, basis) in enumerate(zip(self.covariances, self.bases, strict=True)):
            if covariance is None or basis is None:
                continue
            moved = covariance @ basis
            order = (basis * moved).sum(0).argsort(descending=True, stable=True)
            fresh = torch.linalg.qr(moved.index_select(1, order)).Q
            mean.copy_(torch.linalg.multi_dot([fresh.mT, basis, mean] if axis == 0 else [mean, basis.mT, fresh]))
            square.copy_(square.index_select(axis, order))
            basis.copy_(fresh)
