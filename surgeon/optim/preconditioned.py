"""SOAP on the matrices of multiplicities: Adam in the eigenbasis of the covariance of gradients.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (ICLR 2025). For a block with gradient G the means
L = E[G G^T] and R = E[G^T G] are kept, and Adam's squares are those of Q_L^T G Q_R, with the eigenvectors of L and R in
the columns of Q_L and Q_R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import UsageError
from surgeon.optim.adam import BETAS, Batch, Groups, MatrixOptimizer, Moving, batches

EVERY, LARGEST = 10, 512

SIDES = ("left", "right")


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
        if every < 1 or largest < 1:
            raise UsageError(f"expected every and largest of at least 1, got {every} and {largest}: correct them")
        super().__init__(params, lr, betas, eps, weight_decay, {"every": every, "largest": largest})

    def _step_group(self, moving: Sequence[Moving], group: Mapping[str, Any]) -> None:
        for each in moving:
            each.state["exp_avg"].lerp_(each.gradient, 1 - group["betas"][0])
            _start(each, group["largest"])
        turned = {id(each): _Turned(each) for each in moving}
        found = [_Bases(batch) for batch in _with_bases(moving)]
        for bases in found:
            bases.record(1 - group["betas"][1])
            bases.turn(lambda each: turned[id(each)].gradient)
            bases.turn(lambda each: turned[id(each)].mean)
        for each in moving:
            each.update = each.adam(turned[id(each)].gradient, turned[id(each)].mean, group)
        for bases in found:
            bases.turn(lambda each: each.update, back=True)
        for batch in _with_bases([each for each in moving if each.step % group["every"] == 0]):
            _refresh(batch)


class _Turned:
    """Gradient and mean of gradients of a parameter, to be expressed in other bases."""

    def __init__(self, each: Moving) -> None:
        self.gradient, self.mean = each.gradient, each.state["exp_avg"]
        if each.blocks:
            self.gradient, self.mean = self.gradient.clone(), self.mean.clone()


def _slot(side: str, number: int) -> str:
    return f"{side}_{number}"


def _basis_slot(side: str, number: int) -> str:
    return f"{side}_basis_{number}"


def _start(each: Moving, largest: int) -> None:
    """Begin the covariances of blocks, each with its first gradient that is not 0: that of 0 has no eigenvectors."""
    for number, block in enumerate(each.blocks):
        sides = [side for side, size in zip(SIDES, block.shape, strict=True) if size <= largest]
        if not sides or _slot(sides[0], number) in each.state:
            continue
        gradient = block.of(each.gradient)
        if bool(gradient.any()):
            for side in sides:
                covariance = _covariance(side, gradient)
                each.state[_slot(side, number)] = covariance
                each.state[_basis_slot(side, number)] = first_basis(covariance)


def _covariance(side: str, gradient: Tensor) -> Tensor:
    return gradient @ gradient.mT if side == "left" else gradient.mT @ gradient


def first_basis(covariance: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix in columns, largest eigenvalue first."""
    scale = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    vectors: Tensor = torch.linalg.eigh(covariance / scale + 1e-10 * identity).eigenvectors
    return vectors.flip(-1).contiguous()


def _with_bases(moving: Sequence[Moving]) -> list[Batch]:
    """Return the blocks that have a basis on either side; those of one size have them on the same sides."""
    found = []
    for batch in batches(moving):
        members = [(each, n) for each, n in batch.members if any(_slot(side, n) in each.state for side in SIDES)]
        if members:
            found.append(Batch(members))
    return found


def _stacked(batch: Batch, slot: Any, side: str) -> Tensor | None:
    """Return the covariances, or the bases, of a side; None if it has none."""
    if slot(side, batch.members[0][1]) not in batch.members[0][0].state:
        return None
    return torch.stack([each.state[slot(side, number)] for each, number in batch.members])


class _Bases:
    """The bases of the blocks of a batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.left, self.right = (_stacked(batch, _basis_slot, side) for side in SIDES)

    def record(self, share: float) -> None:
        """Take the present gradients into the means of the covariances."""
        gradients = self.batch.take(lambda each: each.gradient)
        for side in SIDES:
            for (each, number), new in zip(self.batch.members, _covariance(side, gradients), strict=True):
                if _slot(side, number) in each.state:
                    each.state[_slot(side, number)].lerp_(new, share)

    def turn(self, of: Any, back: bool = False) -> None:
        """Express the blocks of one tensor for each parameter in the bases, in place; or back in their own."""
        matrices = self.batch.take(of)
        if self.left is not None:
            matrices = (self.left if back else self.left.mT) @ matrices
        if self.right is not None:
            matrices = matrices @ (self.right.mT if back else self.right)
        self.batch.put(matrices, of)


def _refresh(batch: Batch) -> None:
    """Bring the bases nearer to the eigenvectors by a step of orthogonal iteration; squares stay with their columns."""
    squares = batch.take(lambda each: each.state["exp_avg_sq"])
    for axis, other, side in zip((-2, -1), (-1, -2), SIDES, strict=True):
        covariances, bases = _stacked(batch, _slot, side), _stacked(batch, _basis_slot, side)
        if covariances is None or bases is None:
            continue
        moved = covariances @ bases
        order = (bases * moved).sum(-2).argsort(dim=-1, descending=True, stable=True)
        moved = moved.gather(-1, order.unsqueeze(-2).expand_as(moved))
        squares = squares.gather(axis, order.unsqueeze(other).expand_as(squares))
        for (each, number), basis in zip(batch.members, torch.linalg.qr(moved).Q, strict=True):
            each.state[_basis_slot(side, number)].copy_(basis)
    batch.put(squares, lambda each: each.state["exp_avg_sq"])
