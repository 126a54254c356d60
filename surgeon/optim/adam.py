"""What the optimisers of matrices share: Adam with decoupled decay, batches of blocks of one size, state per weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.errors import UsageError
from surgeon.optim.blocks import WeightBlocks

BETAS = (0.9, 0.95)
"""Decay of the means of gradients and of their squares."""

WARMUP = 10
"""Steps in which the learning rate should rise: the first bases are those of single gradients."""

Groups = Iterable[Tensor] | Iterable[dict[str, Any]]


def require_settings(usable: Callable[[], bool], what: str, *got: object) -> None:
    """Refuse settings that are out of range, or of a type that has none.

    Raises:
        UsageError: if they are.
    """
    try:
        fits = usable()
    except (TypeError, ValueError, RuntimeError):  # the last of tensors
        fits = False
    if not fits:
        raise UsageError(f"expected {what}, got {', '.join(map(repr, got))}: correct that")


class MatrixOptimizer(torch.optim.Optimizer):
    """AdamW, changed on blocks by a subclass.

    State is held by parameter: ``step``, and tensors shaped as it is, in float32 where the parameter has half
    precision. Parameters without a gradient are skipped. A step is as deterministic as torch's products and
    decompositions are.

    Args:
        betas: decay per step of the means of gradients and of their squares.
        eps: added to the root of the mean square.
        weight_decay: decoupled.
        options: further defaults of groups.

    Raises:
        UsageError: if a value is unusable.
    """

    def __init__(
        self,
        params: Groups,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        options: Mapping[str, Any],
    ) -> None:
        require_settings(
            lambda: all(0 <= value < math.inf for value in (lr, eps, weight_decay)),
            "a finite learning rate, eps and decay of at least 0",
            *(lr, eps, weight_decay),
        )
        require_settings(
            lambda: len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two betas from 0 to below 1", betas
        )
        self._blocks: dict[Tensor, tuple[MatrixBlock, ...]] | None = None
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, **options}
        super().__init__(params, defaults)

    def use_blocks(self, weights: Iterable[WeightBlocks]) -> None:
        """Say which matrices lie inside the parameters; all others are moved by AdamW. Needed before the first step.

        Args:
            weights: from :func:`surgeon.optim.find_blocks`, of the model that holds the parameters.
        """
        self._blocks = {weight.parameter: weight.blocks for weight in weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave, with the state's own precision: torch would round it to the parameter's."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for slot, value in state_dict["state"].get(number, {}).items():
                if slot != "step":
                    self.state[parameter][slot] = value.detach().to(parameter.device, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step.

        Raises:
            UsageError: if it does not know of any blocks yet.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._blocks is None:
            raise UsageError(
                "expected to know the matrices inside the weights: make the optimizer by surgeon.optim.soap(model) or "
                "muon(model), give it use_blocks(find_blocks(model)), or add the callback MatrixBlocks to the trainer"
            )
        for group in self.param_groups:
            moving = [
                Moving(parameter, self.state[parameter], self._blocks.get(parameter, ()))
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            if moving:
                self._step_group(moving, group)
            for each in moving:
                if group["weight_decay"]:
                    each.parameter.mul_(1 - group["lr"] * group["weight_decay"])
                each.parameter.add_(each.update, alpha=-group["lr"])
        return loss

    def _step_group(self, moving: Sequence[Moving], group: Mapping[str, Any]) -> None:
        """Change the state of all that moves, and set their updates."""
        raise NotImplementedError


class Moving:
    """One parameter during a step, with contiguous tensors in the precision of its state.

    Args:
        parameter: with a gradient.
        state: the optimiser's, of this parameter; made here at its first step.
        blocks: the matrices inside it.

    Attributes:
        gradient: of the parameter.
        step: number of this step for this parameter, from 1.
        update: what is subtracted, times the learning rate.
    """

    def __init__(self, parameter: Tensor, state: dict[str, Any], blocks: tuple[MatrixBlock, ...]) -> None:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            raise UsageError("expected dense gradients, got a sparse one: make the embedding without sparse=True")
        precise = torch.promote_types(parameter.dtype, torch.float32)
        self.parameter, self.state, self.blocks = parameter, state, blocks
        self.gradient = parameter.grad.to(precise).contiguous()
        if not state:
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(self.gradient)
        state["step"] += 1
        self.step, self.update = int(state["step"]), self.gradient

    def adam(self, gradient: Tensor, mean: Tensor, group: Mapping[str, Any]) -> Tensor:
        """Record the square of a gradient and return Adam's update, in whatever basis both are given.

        Args:
            gradient: shaped as the parameter.
            mean: of gradients, in the same basis; not changed.
            group: ``betas`` and ``eps``.
        """
        first, second = group["betas"]
        if "exp_avg_sq" not in self.state:
            self.state["exp_avg_sq"] = torch.zeros_like(gradient)
        square: Tensor = self.state["exp_avg_sq"]
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second**self.step)).sqrt_().add_(group["eps"])
        update: Tensor = mean / (1 - first**self.step)
        return update.div_(deviation)


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
