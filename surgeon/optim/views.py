"""Blocks as tensors of their own, for optimisers that know nothing of blocks: each shares memory with its weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from surgeon.optim.blocks import WeightBlocks


class MatrixViews:
    """Weights, and what :meth:`take_gradients` gives them for gradients, as matrices that share memory with the model.

    Any optimiser of torch works on them; what it does to a view it does to the weight::

        views = MatrixViews(find_blocks(model, plan))
        optimizer = torch.optim.Muon(views.matrices)
        model.zero_grad()  # the optimizer knows its views alone
        loss.backward()
        views.take_gradients()
        optimizer.step()

    Args:
        weights: from :func:`surgeon.optim.find_blocks`.

    Attributes:
        matrices: one leaf tensor with two axes for every block.
        rest: the parameters that have no block at all, for an optimiser of another kind. Numbers of a weight beside
            its blocks belong to neither, see :attr:`left_over`.
        left_over: names of the parameters that lie in blocks in part only.
    """

    def __init__(self, weights: Sequence[WeightBlocks]) -> None:
        self._owners = [(weight.parameter, block) for weight in weights for block in weight.blocks]
        self.matrices: list[Tensor] = [block.of(parameter.detach()) for parameter, block in self._owners]
        self.rest = [weight.parameter for weight in weights if not weight.blocks]
        self.left_over = [weight.name for weight in weights if 0 < weight.covered < weight.parameter.numel()]

    def take_gradients(self) -> None:
        """Make the gradients of the weights those of the views, sharing memory; call it after every backward."""
        for (parameter, block), matrix in zip(self._owners, self.matrices, strict=True):
            gradient = parameter.grad
            matrix.grad = None if gradient is None else block.of(gradient.contiguous())
