"""The optimiser: separate groups for base, branches and gauge, and an Adam that does not normalise entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import UsageError
from surgeon.optim.orthogonalised import Muon
from surgeon.optim.preconditioned import Soap
from surgeon.training.settings import FinetuneSettings

Blocks = tuple[Tensor, Tensor]
"""For the first two axes of a parameter, the number of the block to which every index belongs; long."""


class BlockAdamW(torch.optim.AdamW):
    """AdamW whose second moment is one number per block of W, from one irrep to another, instead of one per entry.

    Adam moves every entry by about the learning rate whatever its gradient, so that W fills with noise where it gets no
    signal. With one scale for a block, entries move in proportion to their gradients within it, and the step is
    equivariant: it commutes with changes of basis inside the irreps.

    Parameters in groups with an entry ``blocks`` (one pair of index tensors per parameter) are treated so; all others
    as AdamW treats them.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step."""
        every = self.param_groups
        self.param_groups = [group for group in every if "blocks" not in group]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            for parameter, blocks in zip(group["params"], group.get("blocks", ()), strict="blocks" in group):
                if parameter.grad is not None:
                    self._step_blocks(parameter, parameter.grad, blocks, group)
        return loss

    def _step_blocks(self, parameter: Tensor, gradient: Tensor, blocks: Blocks, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        step = float(state["step"])
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].lerp_(block_mean(gradient.square(), blocks), 1 - second)
        deviation = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], deviation, value=-group["lr"] / (1 - first**step))


def block_mean(values: Tensor, blocks: Blocks) -> Tensor:
    """Replace every entry by the mean over its block.

    Args:
        values: shape (r, c, ...); the axes after the second belong to all blocks alike.
        blocks: block numbers of shape (r,) and (c,).

    Returns:
        Shaped as ``values``.
    """
    rows, columns = (index.to(values.device) for index in blocks)
    one_row, one_column = (_averaging(index, values) for index in (rows, columns))
    means = one_row @ values.reshape(len(rows), len(columns), -1).mean(-1) @ one_column.T
    spread = means[rows[:, None], columns[None, :]]
    return spread.reshape(*spread.shape, *(1 for _ in values.shape[2:])).expand_as(values)


def _averaging(index: Tensor, like: Tensor) -> Tensor:
    """Return the matrix that averages over blocks; shape (blocks, len(index))."""
    one_hot = torch.nn.functional.one_hot(index).T.to(like)
    return one_hot / one_hot.sum(1, keepdim=True).clamp(min=1)


def make_optimizer(groups: Sequence[dict[str, Any]], settings: FinetuneSettings) -> torch.optim.Optimizer:
    """Return the optimiser of a run.

    Args:
        groups: ``params``, ``name``, ``base_rate`` and perhaps ``blocks``, see :class:`BlockAdamW`.
        settings: optimiser, learning rate, beta2 and weight decay. Optimisers of matrices still have to be told of
            them.
    """
    rate, decay = settings.chosen_rate, settings.weight_decay
    given: dict[str, Any] = {} if settings.beta2 is None else {"betas": (0.9, settings.beta2)}
    if any("blocks" in group for group in groups):
        if settings.chosen_optimizer != "adamw":
            raise UsageError(
                "expected the optimizer adamw with the branch normalisation 'block', got "
                f"{settings.chosen_optimizer!r}: choose one of the two anew"
            )
        return BlockAdamW(groups, lr=rate, weight_decay=decay, **given)
    if settings.chosen_optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=decay, momentum=0.9)
    kinds: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "soap": Soap,
        "muon": Muon,
    }
    return kinds[settings.chosen_optimizer](groups, lr=rate, weight_decay=decay, **given)


def rate_scale(settings: FinetuneSettings, step: int, steps: int, epoch: int) -> float:
    """Return what the learning rates are multiplied with at a step.

    Args:
        settings: ``decay``, ``decay_factor``, ``decay_every``, ``warmup_steps``.
    """
    rise = settings.warmup_steps
    warm = min(1.0, (step + 1) / (rise + 1))
    progress = min(1.0, max(0.0, (step - rise) / max(1, steps - rise)))
    if settings.decay == "cosine":
        return warm * (1 + math.cos(math.pi * progress)) / 2
    if settings.decay == "linear":
        return warm * (1 - progress)
    if settings.decay == "step":
        return warm * settings.decay_factor ** (epoch // settings.decay_every)
    return warm
