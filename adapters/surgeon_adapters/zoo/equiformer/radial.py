"""Functions of an edge's length: Gaussian, spherical Bessel, and exponential-normal, with the published names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from surgeon_adapters.zoo.equiformer.config import Basis

PI_OF_GAUSSIANS = 3.14159
"""The published code rounds it, which weights that were trained with it know."""

ENVELOPE = 5
"""Exponent of the polynomial envelope of Bessel functions."""


class GaussianBasis(nn.Module):
    """Normal densities with trained means and widths, of a trained affine function of the length over the cutoff."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.mean = nn.Parameter(torch.empty(1, count).uniform_(0, 1))
        self.std = nn.Parameter(torch.empty(1, count).uniform_(1 / count, 1))
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 1))

    def forward(self, length: Tensor) -> Tensor:
        """Map (m,) to (m, count)."""
        x = self.weight * (length / self.cutoff).unsqueeze(-1) + self.bias
        width = self.std.abs() + 1e-5
        density = torch.exp(-0.5 * ((x - self.mean) / width).square())
        return density / (math.sqrt(2 * PI_OF_GAUSSIANS) * width)


class _SphericalBessel(nn.Module):
    """``sqrt(2 / c^3) sin(f_n x) / x`` of the length x over the cutoff c."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.scale = math.sqrt(2 / cutoff**3)
        self.frequencies = nn.Parameter(math.pi * torch.arange(1, count + 1).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        column = x.unsqueeze(-1)
        return self.scale * torch.sin(self.frequencies * column) / column


class BesselBasis(nn.Module):
    """Spherical Bessel functions times a polynomial that vanishes smoothly at the cutoff."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.rbf = _SphericalBessel(count, cutoff)

    def forward(self, length: Tensor) -> Tensor:
        """Map (m,) to (m, count)."""
        x, p = length / self.cutoff, ENVELOPE
        inside = 1 - x**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x.square())
        envelope = torch.where(x < 1, inside, torch.zeros_like(x))
        values: Tensor = self.rbf(x)
        return envelope.unsqueeze(-1) * values


class ExponentialBasis(nn.Module):
    """``cos-cutoff(r) exp(-beta (exp(-5 r / c) - mu)^2)`` with fixed means mu between exp(-c) and 1."""

    means: Tensor
    betas: Tensor

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.register_buffer("means", torch.linspace(start, 1, count))
        self.register_buffer("betas", torch.full((count,), (2 / count * (1 - start)) ** -2))

    def forward(self, length: Tensor) -> Tensor:
        """Map (m,) to (m, count)."""
        r = length.unsqueeze(-1)
        smooth = 0.5 * (torch.cos(math.pi * r / self.cutoff) + 1) * (r < self.cutoff)
        return smooth * torch.exp(-self.betas * (torch.exp(-5 * r / self.cutoff) - self.means).square())


def cutoff_of_means(means: Tensor) -> float:
    """Return the cutoff that the means of an exponential basis were made with, in Angstrom, to five digits."""
    return round(-math.log(float(means[0])), 5)


def radial_basis(kind: Basis, count: int, cutoff: float) -> nn.Module:
    """Return the functions of an edge's length."""
    match kind:
        case "gaussian":
            return GaussianBasis(count, cutoff)
        case "bessel":
            return BesselBasis(count, cutoff)
        case "exp":
            return ExponentialBasis(count, cutoff)
