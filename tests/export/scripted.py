"""Modules for TorchScript: control flow, containers, state; they stand in a file because scripting reads the source."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn


class Flow(nn.Module):
    """Conditions, a loop, a tuple, a default, an attribute, dropout and batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 3
        self.weights = [1, 2]
        self.linear = nn.Linear(2, 2, bias=False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("shift", torch.tensor([0.5, -1.0]))

    def forward(self, x: Tensor, scale: float = 2.0, twice: bool = True) -> tuple[Tensor, Tensor]:
        if x.shape[0] > self.limit and twice:
            x = x * scale
        total = x.new_zeros([x.size(0), 2])
        for weight in range(self.weights[1]):
            total = total + weight * x
        hidden = nn.functional.dropout(nn.functional.silu(self.linear(total + x)), 0.5, self.training)
        return self.norm(hidden + self.shift), x.reshape(-1, 1, x.shape[1]).expand(x.shape[0], 2, 2).sum(1)


class Forked(nn.Module):
    """Uses what only TorchScript's own interpreter can do."""

    def forward(self, x: Tensor) -> Tensor:
        future: torch.jit.Future[Tensor] = torch.jit.fork(torch.neg, x)
        return torch.jit.wait(future)


class Around(nn.Module):
    """An eager model with one scripted layer under two names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.inner = inner
        self.again = inner

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(self.first(x))
        result: Tensor = self.again(found[0])[0] if isinstance(found, tuple) else found
        return result


def again(module: Any) -> Any:
    """Save a scripted module and load it."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)
