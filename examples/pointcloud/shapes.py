"""Point clouds on ten surfaces with random proportions, all quantities dimensionless."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

STRETCH = (0.6, 1.4)
"""Range of the factors by which each cloud's axes are stretched."""
TUBE = 0.35
"""Radius of the torus' tube relative to its ring."""


@dataclass(frozen=True)
class Clouds:
    """Labelled point clouds.

    Attributes:
        points: shape (b, 3, n), float64; the mean of each cloud is 0 and its furthest point lies at distance 1.
        labels: shape (b,), long: index into :data:`SHAPES`.
    """

    points: Tensor
    labels: Tensor


def sample_clouds(count: int, points: int, noise: float, rotate: bool, seed: tuple[int, int]) -> Clouds:
    """Draw clouds; the shapes take turns, so that labels are balanced.

    Args:
        count: number b of clouds.
        points: number n of points per cloud.
        noise: standard deviation of the displacement of each coordinate.
        rotate: turn each cloud by a random rotation; otherwise all axes are those of the coordinates.
        seed: two numbers, such as a seed and the index of a split.

    Returns:
        The clouds.
    """
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    labels = torch.arange(count) % len(SHAPES)
    clouds = torch.empty(count, points, 3, dtype=torch.float64)
    for index, sample in enumerate(SHAPES.values()):
        rows = labels == index
        clouds[rows] = sample(int(rows.sum()), points, generator)
    low, high = STRETCH
    clouds = clouds * (low + (high - low) * _uniform((count, 1, 3), generator))
    clouds = clouds + noise * torch.randn(clouds.shape, generator=generator, dtype=torch.float64)
    clouds = clouds - clouds.mean(1, keepdim=True)
    clouds = clouds / torch.linalg.vector_norm(clouds, dim=-1).amax(-1)[:, None, None]
    if rotate:
        clouds = clouds @ _rotations(count, generator)
    return Clouds(clouds.transpose(1, 2).contiguous(), labels)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _rotations(count: int, generator: torch.Generator) -> Tensor:
    """Return rotations of shape (count, 3, 3), uniformly distributed."""
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # makes the distribution uniform
    return q * torch.det(q)[:, None, None]


def _sphere(count: int, points: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(count, points, 3, generator=generator, dtype=torch.float64)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _box(count: int, points: int, generator: torch.Generator) -> Tensor:
    x = 2 * _uniform((count, points, 3), generator) - 1
    face = torch.randint(3, (count, points, 1), generator=generator)
    return x.scatter(-1, face, torch.where(x.gather(-1, face) < 0, -1.0, 1.0).double())


def _on_circle(radius: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    angle = 2 * math.pi * _uniform(tuple(radius.shape), generator)
    return radius * angle.cos(), radius * angle.sin()


def _cylinder(count: int, points: int, generator: torch.Generator) -> Tensor:
    """Height 2 and radius 1: the side has twice the area of both caps."""
    which, height, radius = _uniform((3, count, points), generator)
    side = which < 2 / 3
    x, y = _on_circle(torch.where(side, torch.ones_like(radius), radius.sqrt()), generator)
    return torch.stack([x, y, torch.where(side, 2 * height - 1, torch.where(height < 0.5, -1.0, 1.0))], dim=-1)


def _cone(count: int, points: int, generator: torch.Generator) -> Tensor:
    """Height 2 and radius 1: the side has sqrt(5) times the area of the base."""
    which, radius = _uniform((2, count, points), generator)
    radius = radius.sqrt()
    x, y = _on_circle(radius, generator)
    height = torch.where(which < math.sqrt(5) / (1 + math.sqrt(5)), 1 - 2 * radius, -torch.ones_like(radius))
    return torch.stack([x, y, height], dim=-1)


def _torus(count: int, points: int, generator: torch.Generator) -> Tensor:
    """Uniform in both angles, so slightly denser on the inside."""
    out, height = _on_circle(torch.full((count, points), TUBE, dtype=torch.float64), generator)
    x, y = _on_circle(1 + out, generator)
    return torch.stack([x, y, height], dim=-1)


def _bowl(count: int, points: int, generator: torch.Generator) -> Tensor:
    """A paraboloid, open at the top: z = x^2 + y^2 over the unit disc, uniform in the disc."""
    x, y = _on_circle(_uniform((count, points), generator).sqrt(), generator)
    return torch.stack([x, y, x.square() + y.square()], dim=-1)


def _saddle(count: int, points: int, generator: torch.Generator) -> Tensor:
    """A hyperbolic paraboloid: z = x^2 - y^2 over the unit disc, uniform in the disc."""
    x, y = _on_circle(_uniform((count, points), generator).sqrt(), generator)
    return torch.stack([x, y, x.square() - y.square()], dim=-1)


def _octahedron(count: int, points: int, generator: torch.Generator) -> Tensor:
    """Sum of absolute values 1; the gaps between sorted uniform numbers are uniform on a face."""
    cuts = _uniform((count, points, 2), generator).sort(dim=-1).values
    weights = torch.stack([cuts[..., 0], cuts[..., 1] - cuts[..., 0], 1 - cuts[..., 1]], dim=-1)
    return weights * (2.0 * torch.randint(2, (count, points, 3), generator=generator) - 1)


def _helix(count: int, points: int, generator: torch.Generator) -> Tensor:
    """Two turns of a right-handed spiral ramp, as wide as half its radius: its mirror image is no rotation of it."""
    turn, width = _uniform((2, count, points), generator)
    angle, radius = 4 * math.pi * turn, 0.5 + 0.5 * width
    return torch.stack([radius * angle.cos(), radius * angle.sin(), 2 * turn - 1], dim=-1)


def _moebius(count: int, points: int, generator: torch.Generator) -> Tensor:
    """A Moebius band of radius 1 and width 0.8, uniform in angle and width."""
    turn, width = _uniform((2, count, points), generator)
    angle, offset = 2 * math.pi * turn, 0.8 * (width - 0.5)
    radius = 1 + offset * (angle / 2).cos()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), offset * (angle / 2).sin()], dim=-1)


SHAPES: Mapping[str, Callable[[int, int, torch.Generator], Tensor]] = MappingProxyType(
    {
        "sphere": _sphere,
        "box": _box,
        "cylinder": _cylinder,
        "cone": _cone,
        "torus": _torus,
        "bowl": _bowl,
        "saddle": _saddle,
        "octahedron": _octahedron,
        "helix": _helix,
        "moebius": _moebius,
    }
)
