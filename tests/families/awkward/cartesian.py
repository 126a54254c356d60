"""Tensors of rank 2 in one layout of 3 x 3: multiples of the identity, skew and symmetric traceless parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case


class Parts(nn.Module):
    """Mixes the channels of each part of tensors (n, 3, 3, c) by weights of its own."""

    def __init__(self, as_tensor: bool) -> None:
        super().__init__()
        self.as_tensor = as_tensor
        self.identity, self.skew, self.rest = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        identity = torch.einsum("niic,jk->njkc", x, torch.eye(3)) / 3
        skew, symmetric = (x - x.transpose(1, 2)) / 2, (x + x.transpose(1, 2)) / 2
        scaled = self.identity(identity)
        if not self.as_tensor:  # only its trace is read
            scaled = torch.einsum("niic,jk->njkc", scaled, torch.eye(3)) / 3
        return scaled + self.skew(skew) + self.rest(symmetric - identity)


class TensorNetwork(nn.Module):
    """Products of vectors, mixed part by part, and squared; channels are before the components or after them."""

    def __init__(self, last: bool, as_tensor: bool = True) -> None:
        super().__init__()
        self.last, self.parts = last, Parts(as_tensor)

    def forward(self, x: Tensor) -> Tensor:
        outer = torch.einsum("nci,ncj->ncij", x, x + x.roll(1, dims=1))
        parts = self.parts(outer.permute(0, 2, 3, 1))
        y = parts.permute(0, 3, 1, 2)
        y = y @ y.roll(1, dims=1)
        return y.permute(0, 2, 3, 1) if self.last else y


def _case(name: str, trap: str, last: bool, as_tensor: bool, sites: set[str]) -> Case:
    where = "cij" if not last else "ijc"
    turned = f"ai,bj,n{where}->n{where.replace('i', 'a').replace('j', 'b')}"
    return Case(
        name,
        trap,
        lambda: TensorNetwork(last, as_tensor),
        {f"parts.{part}.input" for part in sites},
        group="O3",
        act_output=lambda g, y: torch.einsum(turned, g, g, y),
        audit={} if as_tensor else {"parts.identity.weight": "invariant"},
        twin=not as_tensor,
    )


CASES = (
    _case("parts of tensors", "multiples of the identity are no invariants", False, True, {"identity", "skew", "rest"}),
    _case("traces of tensors", "a part of which only the trace is read", True, False, {"skew", "rest"}),
)
