"""Complex tensors and parameters, which are taken for pairs of real numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case
from tests.families.awkward.groups import NO_SYMMETRY
from tests.families.awkward.pseudotensors import random

DOUBLE = torch.complex128


class Phases(nn.Module):
    """Complex layers and raw complex weights; sizes alone go through the activation, or also phases."""

    def __init__(self, phases: bool = False) -> None:
        super().__init__()
        self.phases = phases
        self.first, self.last = (nn.Linear(CHANNELS, CHANNELS, bias=False, dtype=DOUBLE) for _ in range(2))
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, dtype=DOUBLE) / 2)

    def forward(self, z: Tensor) -> Tensor:
        h = self.raw(self.first(z))
        return self.last(torch.tanh(h) if self.phases else h * h.abs().tanh())

    def raw(self, z: Tensor) -> Tensor:
        return z @ self.weight.T


class Biased(Phases):
    """A bias of the first layer that is 0 before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first.bias = nn.Parameter(torch.zeros(CHANNELS, dtype=DOUBLE))


class Conjugated(Phases):
    """A forward that cannot be traced, with real ends; what is conjugated turns the other way."""

    def raw(self, z: Tensor) -> Tensor:
        if float(z.detach().abs().sum()) < 0:
            return z
        return torch.einsum("oc,...c->...o", self.weight, z.conj()).conj()

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_real(super().forward(torch.view_as_complex(z)))


class Doublets(nn.Module):
    """Channels of complex doublets (n, c, 2), mixed by complex weights; SU(2) mixes the two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Linear(CHANNELS, CHANNELS, bias=False, dtype=DOUBLE) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z.mT)
        h = h * (h * h.conj()).sum(1, keepdim=True).abs().tanh()
        return self.last(h).mT


class Kernels(nn.Module):
    """A convolution of complex numbers, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv1d(CHANNELS, CHANNELS, 3, bias=False, dtype=DOUBLE)
        self.last = nn.Linear(CHANNELS, 2, bias=False, dtype=DOUBLE)

    def forward(self, z: Tensor) -> Tensor:
        h = self.kernel(z)
        return self.last((h * h.abs().tanh()).mean(-1))


def turned(g: Tensor, z: Tensor) -> Tensor:
    """Multiply by a phase."""
    return z * torch.complex(g[0, 0], g[1, 0])


def mixed(g: Tensor, z: Tensor) -> Tensor:
    """Act on complex doublets."""
    return z @ torch.complex(g[::2, ::2], g[1::2, ::2]).T


def numbers(*shape: int) -> Tensor:
    """Random complex numbers."""
    return torch.view_as_complex(random(*shape, 2))


SITES = {"first.input.re_im", "last.input.re_im"}

CASES = (
    Case(
        "phases",
        "complex features and weights",
        Phases,
        {*SITES, "weight.re_im"},
        group="U1",
        inputs=lambda: (numbers(7, CHANNELS),),
        act=turned,
        act_output=turned,
    ),
    Case(
        "complex inside",
        "complex features between real ends, in a forward that cannot be traced",
        Conjugated,
        {*SITES, "weight.re_im"},
        group="U1",
        inputs=lambda: (random(7, CHANNELS, 2),),
        act_output=lambda g, y: y @ g.T,
    ),
    Case(
        "complex bias",
        "symmetric before it is trained",
        Biased,
        group="U1",
        inputs=lambda: (numbers(7, CHANNELS),),
        act=turned,
        act_output=turned,
        error="how its output transforms is not known",
    ),
    Case(
        "complex kernels",
        "a convolution of complex numbers",
        Kernels,
        {"last.input.re_im"},
        group="U1",
        inputs=lambda: (numbers(7, CHANNELS, 5),),
        act=turned,
        act_output=turned,
        reason={"kernel.weight": "a convolution of complex numbers"},
        twin=True,
    ),
    Case(
        "functions of phases",
        "an analytic function of complex numbers",
        lambda: Phases(phases=True),
        group="U1",
        inputs=lambda: (numbers(7, CHANNELS),),
        act=turned,
        act_output=turned,
        error=NO_SYMMETRY,
    ),
    Case(
        "complex doublets",
        "spinors",
        Doublets,
        SITES,
        group="SU2",
        inputs=lambda: (numbers(24, CHANNELS, 2),),
        act=mixed,
        act_output=mixed,
    ),
)
