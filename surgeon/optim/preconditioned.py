"""SOAP on the matrices of multiplicities: Adam in the eigenbasis of the covariance of gradients.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (ICLR 2025). For a block with gradient G the means
L = E[G G^T] and R = E[G^T G] are kept, and Adam's squares are those of Q_L^T G Q_R, with the eigenvectors of L and R in
the columns of Q_L and Q_R.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.optim.adam import BETAS, Batch, Groups, MatrixOptimizer, Moving, batches, require_settings

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
        for each in moving:
            _start(each, group["largest"])
        found = [_Bases(batch, group) for batch in _with_bases(moving)]
        turned = {id(each): each.gradient.clone() if each.blocks else each.gradient for each in moving}
        for bases in found:
            bases.batch.put(bases.turn_gradients(), lambda each: turned[id(each)])
        for each in moving:
            gradient, mean = turned[id(each)], each.state["exp_avg"]
            each.update = each.adam(gradient, mean.lerp_(gradient, 1 - group["betas"][0]), group)
        for bases in found:
            bases.batch.put(bases.turned(bases.batch.take(_update), back=True), _update)
        for bases in found:
            due = [(each, number) for each, number in bases.batch.members if each.step % group["every"] == 0]
            if due:
                _refresh(Batch(due))


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


def _joined(batch: Batch, slot: Callable[[str, int], str], side: str) -> Tensor | None:
    """Return the covariances, or the bases, of a side as one tensor, whose parts are the state; None if it has none.

    Where they lie apart, as after loading, they are moved together, so that later steps copy nothing.
    """
    names = [slot(side, number) for _, number in batch.members]
    if names[0] not in batch.members[0][0].state:
        return None
    parts: list[Tensor] = [each.state[name] for (each, _), name in zip(batch.members, names, strict=True)]
    whole, size = parts[0]._base, parts[0].numel()
    places = [(part._base is whole, part.storage_offset()) for part in parts]
    if whole is None or whole.shape[0] != len(parts) or places != [(True, size * n) for n in range(len(parts))]:
        whole = torch.stack(parts)
        for (each, _), name, part in zip(batch.members, names, whole, strict=True):
            each.state[name] = part
    return whole


class _Bases:
    """The bases of the blocks of a batch."""

    def __init__(self, batch: Batch, group: Mapping[str, Any]) -> None:
        self.batch, self.group = batch, group
        self.left, self.right = (_joined(batch, _basis_slot, side) for side in SIDES)

    def turn_gradients(self) -> Tensor:
        """Take the gradients into the covariances, and return them expressed in the bases."""
        gradients, decay = self.batch.take(lambda each: each.gradient), self.group["betas"][1]
        for side in SIDES:
            covariances = _joined(self.batch, _slot, side)
            if covariances is not None:
                rows = gradients if side == "left" else gradients.mT
                covariances.baddbmm_(rows, rows.mT, beta=decay, alpha=1 - decay)
        return self.turned(gradients)

    def turned(self, matrices: Tensor, back: bool = False) -> Tensor:
        """Return matrices of shape (blocks, rows, columns) expressed in the bases; or back in their own."""
        if self.left is not None:
            matrices = (self.left if back else self.left.mT) @ matrices
        if self.right is not None:
            matrices = matrices @ (self.right.mT if back else self.right)
        return matrices


def _update(each: Moving) -> Tensor:
    return each.update


def _in_state(slot: str) -> Callable[[Moving], Tensor]:
    return lambda each: each.state[slot]


def _refresh(batch: Batch) -> None:
    """Bring the bases nearer to the eigenvectors by a step of orthogonal iteration; squares stay with their columns."""
    means, squares = (batch.take(_in_state(slot)) for slot in MEANS)
    for axis, other, side in zip((-2, -1), (-1, -2), SIDES, strict=True):
        covariances, bases = _joined(batch, _slot, side), _joined(batch, _basis_slot, side)
        if covariances is None or bases is None:
            continue
        moved = covariances @ bases
        order = (bases * moved).sum(-2).argsort(dim=-1, descending=True, stable=True)
        fresh = torch.linalg.qr(moved.gather(-1, order.unsqueeze(-2).expand_as(moved))).Q
        means = fresh.mT @ (bases @ means) if side == "left" else (means @ bases.mT) @ fresh
        squares = squares.gather(axis, order.unsqueeze(other).expand_as(squares))
        bases.copy_(fresh)
    for matrices, slot in zip((means, squares), MEANS, strict=True):
        batch.put(matrices, _in_state(slot))
