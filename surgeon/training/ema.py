"""A running average of the weights, evaluated and kept instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surgeon.support.sharding import own_part, sharded_like


class Ema:
    """Exponential moving average of all parameters, in the parameters' dtype and on their device.

    At step t the decay is ``min(decay, (1 + t) / (10 + t))``, so that the first steps do not keep the start for long.

    Args:
        model: its parameters are averaged; buffers are not, they are statistics already.
        decay: in (0, 1), per step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        # Not torch's AveragedModel: it averages a copy, whose branches are not those that the handle switches.
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self.shadow = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after optimiser step ``step`` (1 is the first)."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        shadows = [own_part(shadow) for shadow in self.shadow.values()]
        torch._foreach_lerp_(shadows, [own_part(p) for p in self._parameters.values()], weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """While the context is open the model holds the average; what is changed then is changed in the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Go on from a saved average.

        Raises:
            KeyError: if a parameter is missing.
        """
        for name, value in self.shadow.items():
            value.copy_(sharded_like(shadow[name], value))
