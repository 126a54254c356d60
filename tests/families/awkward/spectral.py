"""Weights that multiply Fourier coefficients, as in neural operators; and spinors of the Lorentz group."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from tests.families.awkward.case import CHANNELS, Case
from tests.families.awkward.groups import NO_SYMMETRY
from tests.families.awkward.pseudotensors import Channels, random

POINTS = 8


class Modes(nn.Module):
    """Mix the channels of the lowest Fourier modes along a ring (b, c, n), each mode by weights of its own."""

    def __init__(self, modes: int = 3) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(2, 2, modes, dtype=torch.complex128) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(self.mixed(torch.fft.rfft(x)), n=x.shape[-1])

    def mixed(self, z: Tensor) -> Tensor:
        low = torch.einsum("bim,iom->bom", z[..., : self.modes], self.weight)
        return torch.cat([low, torch.zeros_like(z[..., self.modes :])], dim=-1)


class Operator(nn.Module):
    """Spectral layers with a skip and an activation between; perhaps points are told by where they are."""

    def __init__(self, placed: bool = False) -> None:
        super().__init__()
        self.first, self.skip, self.second = Modes(), nn.Conv1d(2, 2, 1), Modes()
        self.placed = placed

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + self.skip(x)
        h = h + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype) if self.placed else h
        return self.second(h.tanh())


class Coefficients(Modes):
    """Weights in the model's own forward, between Fourier coefficients that an activation of their sizes meets."""

    def forward(self, x: Tensor) -> Tensor:
        z = torch.fft.rfft(x)
        return torch.fft.irfft(self.mixed(z * z.abs().tanh()), n=x.shape[-1]).tanh()


def spin13() -> tuple[Tensor, None]:
    """The Lorentz group's double cover on Weyl spinors as real pairs: boosts are i times rotations."""
    turns = parse_group("SU2").algebra
    imaginary = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)] * 2)
    return torch.cat([turns, turns @ imaginary]), None


class Dirac(nn.Module):
    """Channels of two Weyl spinors of either chirality, (n, c, 4 + 4), gated by an invariant or by a size."""

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        self.first, self.second = Channels(), Channels()
        self.norms = norms

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        left, right = h.chunk(2, dim=-1)
        size = (h * h if self.norms else 2 * left * right).sum(-1, keepdim=True)
        return self.second(h * size.tanh())


def boosted(g: Tensor, x: Tensor) -> Tensor:
    """Act on Dirac spinors in the Weyl basis."""
    return x @ torch.block_diag(g, torch.linalg.inv(g).T).T


def _ring(name: str, trap: str, build: type[nn.Module] | object, **more: object) -> Case:
    return Case(
        name,
        trap,
        build,  # type: ignore[arg-type]
        group=f"Z{POINTS}",
        inputs=lambda: (random(6, 2, POINTS),),
        act_output=lambda g, y: y @ g.T,
        **more,  # type: ignore[arg-type]
    )


def _dirac(name: str, trap: str, norms: bool, **more: object) -> Case:
    return Case(
        name,
        trap,
        lambda: Dirac(norms),
        group=f"{__name__}:spin13",
        inputs=lambda: (random(24, CHANNELS, 8) / 3,),
        act=boosted,
        act_output=boosted,
        **more,  # type: ignore[arg-type]
    )


CASES = (
    _ring("spectral layers", "weights of Fourier modes", Operator, sites={"first.x", "skip.input", "second.x"}),
    _ring("spectral layers that know places", "no translations", lambda: Operator(True), error="Z8 to be a symmetry"),
    _ring("weights of coefficients", "they turn by phases of their own", Coefficients, error="a phase of its own"),
    _dirac("Dirac spinors", "no copies of the vector", False, sites={"first.x", "second.x"}),
    _dirac("sizes of spinors", "boosts change them", True, error=NO_SYMMETRY),
)
