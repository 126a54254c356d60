"""Tensors that reflections multiply by -1 besides: made by Levi-Civita symbols, in any rank and layout."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case


def levi_civita(size: int) -> Tensor:
    """The totally antisymmetric symbol with ``size`` indices."""
    symbol = torch.zeros(*(size,) * size, dtype=torch.float64)
    for order in permutations(range(size)):
        symbol[order] = torch.linalg.det(torch.eye(size, dtype=torch.float64)[list(order)])
    return symbol


class Skew(nn.Module):
    """Vectors (n, 3, c) to skew matrices (n, 3, 3, c) and back; a symmetric part has the other parity."""

    def __init__(self, symmetric: float = 0.0) -> None:
        super().__init__()
        self.vector, self.matrix = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(2))
        self.symmetric = symmetric

    def forward(self, x: Tensor) -> Tensor:
        a, symbol = self.vector(x), levi_civita(3)
        skew = torch.einsum("ijk,nkc->nijc", symbol, a)
        h = self.matrix(skew + self.symmetric * a[:, :, None] * a[:, None])
        return torch.einsum("ijk,nijc->nkc", symbol, h * h.square().sum((1, 2), keepdim=True).tanh())


class Planar(nn.Module):
    """Vectors turned by a quarter, (n, c, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Channels(), Channels()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.stack([-h[..., 1], h[..., 0]], dim=-1))


class Channels(nn.Module):
    """Mix the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nc...->no...", self.weight, x)


class Dual(nn.Module):
    """The dual of the bivector of two four-vectors, (n, c, 4, 4): odd under parity and under reversal of time."""

    def __init__(self, other: float = 0.0) -> None:
        super().__init__()
        self.vector, self.bivector, self.other = Channels(), Channels(), other

    def forward(self, x: Tensor) -> Tensor:
        metric = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
        a = self.vector(x)
        b = a.roll(1, 1)
        dual = torch.einsum("mnrs,zcr,zcs->zcmn", levi_civita(4), metric * a, metric * b)
        h = self.bivector(dual + self.other * a[..., :, None] * b[..., None, :])
        return torch.einsum("zcmn,zcn->zcm", h, metric * a)


def turned(g: Tensor, x: Tensor) -> Tensor:
    """Act on the second axis."""
    return torch.einsum("ij,njc->nic", g, x)


def random(*shape: int) -> Tensor:
    """The same in each call, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def volume(g: Tensor, y: Tensor) -> Tensor:
    """Pseudovectors."""
    return torch.linalg.det(g) * (y @ g.T)


CASES = (
    Case(
        "skew matrices",
        "pseudo-tensors of rank two, channels last",
        Skew,
        {"vector.input", "matrix.input"},
        group="O3",
        inputs=lambda: (random(7, 3, CHANNELS),),
        act=turned,
        act_output=turned,
    ),
    Case(
        "skew and symmetric matrices",
        "neither a tensor nor a pseudo-tensor",
        lambda: Skew(1.0),
        {"vector.input"},
        group="O3",
        inputs=lambda: (random(7, 3, CHANNELS),),
        act=turned,
        act_output=turned,
        reason={"matrix.weight": "how its input transforms is not known"},
        twin=True,
    ),
    Case(
        "quarter turns of vectors",
        "pseudovectors of the plane",
        Planar,
        {"first.x", "second.x"},
        group="O2",
        inputs=lambda: (random(7, CHANNELS, 2),),
        act_output=volume,
    ),
    Case(
        "dual bivectors",
        "pseudo-tensors of rank two under a group that is not compact",
        Dual,
        {"vector.x", "bivector.x"},
        group="O13",
        inputs=lambda: (random(7, CHANNELS, 4),),
        act_output=volume,
    ),
    Case(
        "dual bivectors and others",
        "two characters in one tensor",
        lambda: Dual(1.0),
        error="to be a symmetry",
        group="O13",
        inputs=lambda: (random(7, CHANNELS, 4),),
        act_output=volume,
    ),
)
