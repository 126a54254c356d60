"""Muon on the matrices of multiplicities: the mean of gradients with all singular values made equal.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The constants are those of
``torch.optim.Muon``; the iteration runs in the precision of the state, not in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.optim.adam import BETAS, Groups, MatrixOptimizer, Moving, adam_updates, require_settings

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that drives singular values towards 1."""

ITERATIONS = 5

ROOT_MEAN_SQUARE = 0.2
"""Of the entries of an update, about that of Adam's, so that the same learning rates suit."""


class Muon(MatrixOptimizer):
    """Muon on blocks, AdamW on everything else.

    Args:
        params: parameters, or groups.
        lr: learning rate; of the size that suits AdamW.
        momentum: decay of the mean of the gradients of blocks, which is Nesterov's.
        betas: those of AdamW.
        eps: that of AdamW.
        weight_decay: decoupled.

    Raises:
        UsageError: if a value is unusable.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        require_settings(lambda: 0 <= momentum < 1, "a momentum from 0 to below 1", momentum)
        super().__init__(params, lr, betas, eps, weight_decay, {"momentum": momentum})

    def _step_group(self, moving: Sequence[Moving], group: Mapping[str, Any]) -> None:
        momentum = group["momentum"]
        for each in moving:
            mean: Tensor = each.state["exp_avg"]
            before = mean.clone() if each.blocks else mean
            if sum(block.size for block in each.blocks) < mean.numel():
                adam_updates([each], group)
            else:
                each.update = torch.empty_like(mean)
            for block in each.blocks:  # theirs has another decay
                block.of(mean).copy_(block.of(before).lerp(block.of(each.gradient), 1 - momentum))
        for batch in batches(moving):
            gradients, means = batch.take(lambda each: each.gradient), batch.take(lambda each: each.state["exp_avg"])
            update = orthogonalised(gradients.lerp(means, momentum)) * (ROOT_MEAN_SQUARE * max(batch.shape) ** 0.5)
            batch.put(update, lambda each: each.update)


class Batch:
    """Blocks of one size, which are worked on at once.

    Args:
        members: a parameter and the number of one of its blocks, for every block.
    """

    def __init__(self, members: Sequence[tuple[Moving, int]]) -> None:
        self.members = list(members)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        each, number = self.members[0]
        return each.blocks[number].shape

    def take(self, of: Callable[[Moving], Tensor]) -> Tensor:
        """Return a copy of the blocks of one tensor for each parameter; shape (blocks, rows, columns)."""
        return torch.stack([each.blocks[number].of(of(each)) for each, number in self.members])

    def put(self, matrices: Tensor, into: Callable[[Moving], Tensor]) -> None:
        """Write matrices into these blocks of one tensor for each parameter."""
        places = [each.blocks[number].of(into(each)) for each, number in self.members]
        torch._foreach_copy_(places, list(matrices))


def batches(moving: Iterable[Moving]) -> list[Batch]:
    """Return all blocks, those of one size, dtype and device together."""
    alike: dict[Any, list[tuple[Moving, int]]] = {}
    for each in moving:
        for number, block in enumerate(each.blocks):
            alike.setdefault((block.shape, each.gradient.dtype, each.gradient.device), []).append((each, number))
    return [Batch(members) for members in alike.values()]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values of about 1.

    Args:
        matrices: shape (..., rows, columns).
    """
    wide: Tensor = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = wide @ wide.mT
        wide = first * wide + (third * square + fifth * square @ square) @ wide
    return wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide
