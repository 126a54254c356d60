"""What the optimisers of matrices share: Adam with decoupled decay, and state per weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

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


def adam_updates(moving: Sequence[Moving], group: Mapping[str, Any]) -> None:
    """Take the gradients that stand for updates into the means, and put Adam's updates in their place.

    Args:
        moving: with updates that are gradients, in whatever basis their means are in.
        group: ``betas`` and ``eps``.
    """
    gradients = [each.update for each in moving]
    for each in moving:
        each.update = torch.zeros_like(each.update)
        if "exp_avg_sq" not in each.state:
            each.state["exp_avg_sq"] = torch.zeros_like(each.update)
    one_pass = all(each.update.device.type == "cpu" and each.update.is_floating_point() for each in moving)
    adam(
        [each.update for each in moving],
        gradients,
        [each.state["exp_avg"] for each in moving],
        [each.state["exp_avg_sq"] for each in moving],
        [],
        [each.state["step"] - 1 for each in moving],  # it adds 1
        fused=one_pass or None,  # elsewhere torch chooses
        has_complex=any(each.update.is_complex() for each in moving),
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=-1.0,
        weight_decay=0.0,
        eps=group["eps"],
        maximize=False,
    )
