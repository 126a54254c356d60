"""Activations on samples of a function on the circle or the sphere: equivariant as nearly as the samples resolve it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case, Mix
from tests.families.awkward.pseudotensors import random

DEGREE = 2


class Circle(nn.Module):
    """Fourier coefficients (n, c, 1 + 2 + 2), mixed frequency by frequency, with an activation at some angles."""

    def __init__(self, samples: int, trained: bool = False, arc: float = 1.0) -> None:
        super().__init__()
        angles = 2 * math.pi * arc * torch.arange(samples) / samples
        waves = [wave(m * angles) for m in range(1, DEGREE + 1) for wave in (torch.cos, torch.sin)]
        self.register_buffer("table", torch.stack([torch.ones(samples), *waves]))
        self.sizes = nn.Parameter(torch.ones(samples), requires_grad=trained)
        self.first, self.last = (nn.ModuleList(Mix() for _ in range(DEGREE + 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        samples = torch.sigmoid(self.mixed(self.first, x) @ self.table) * self.sizes
        return self.mixed(self.last, samples @ torch.linalg.pinv(self.table))

    def mixed(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        parts = x.split([1] + [2] * DEGREE, dim=-1)
        return torch.cat([mix(part) for mix, part in zip(layers, parts, strict=True)], dim=-1)


class Sphere(nn.Module):
    """Vectors with an activation along the corners of a solid."""

    def __init__(self, corners: Tensor) -> None:
        super().__init__()
        corners = corners.to(torch.get_default_dtype())
        self.register_buffer("corners", corners / corners.norm(dim=1, keepdim=True))
        self.first, self.last = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        samples = (self.first(x) @ self.corners.T).tanh()
        return self.last(samples @ self.corners * 3 / len(self.corners))


def icosahedron() -> Tensor:
    """Twelve corners."""
    face = torch.tensor([[0.0, one, other * (1 + 5**0.5) / 2] for one in (1, -1) for other in (1, -1)])
    return torch.cat([face.roll(shift, 1) for shift in range(3)])


def turn(g: Tensor, x: Tensor) -> Tensor:
    """Turn functions on the circle."""
    angle = math.atan2(float(g[1, 0]), float(g[0, 0]))
    turns = [torch.linalg.matrix_exp(m * angle * x.new_tensor([[0.0, -1.0], [1.0, 0.0]])) for m in range(1, DEGREE + 1)]
    return x @ torch.block_diag(torch.eye(1, dtype=x.dtype), *turns).T


def _circle(name: str, trap: str, samples: int, trained: bool = False, **more: object) -> Case:
    return Case(
        name,
        trap,
        lambda: Circle(samples, trained),
        group="SO2",
        inputs=lambda: (random(7, CHANNELS, 1 + 2 * DEGREE) / 2,),
        act=turn,
        act_output=turn,
        **more,  # type: ignore[arg-type]
    )


def _sphere(name: str, trap: str, corners: Tensor, size: float, **more: object) -> Case:
    return Case(
        name,
        trap,
        lambda: Sphere(corners),
        group="O3",
        inputs=lambda: (size * random(7, CHANNELS, 3),),
        act_output=lambda g, y: y @ g.T,
        **more,  # type: ignore[arg-type]
    )


NO_SYMMETRY = "to be a symmetry of the model, but under 'identity'"

NEARLY = (
    _circle(
        "samples on a circle",
        "features behind the samples transform nearly",
        12,
        sites={f"{layers}.{m}.x" for layers in ("first", "last") for m in (1, 2)},
    ),
    _circle(
        "many samples on a circle",
        "the error of the output is hardly more than rounding, that of the features is more",
        17,
        sites={f"{layers}.{m}.x" for layers in ("first", "last") for m in (1, 2)},
    ),
    _sphere("samples on a sphere", "so do vectors", icosahedron(), 0.2, sites={"first.x", "last.x"}),
)
CASES = (
    *NEARLY,
    _circle("few samples on a circle", "they resolve nothing", 4, error=NO_SYMMETRY),
    _circle("samples with weights of their own", "nearly symmetric by its weights alone", 12, True, error=NO_SYMMETRY),
    _sphere("few samples on a sphere", "six corners", torch.cat([torch.eye(3), -torch.eye(3)]), 1.0, error=NO_SYMMETRY),
)
