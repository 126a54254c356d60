"""The surfaces of the point cloud example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.modules import importable

EXAMPLE = Path(__file__).parents[2] / "examples" / "pointcloud"


@pytest.fixture
def shapes() -> Iterator[ModuleType]:
    with importable(EXAMPLE):
        yield import_module("shapes")


@pytest.mark.parametrize("rotate", [False, True])
def test_clouds_are_centred_scaled_and_balanced(shapes: ModuleType, rotate: bool) -> None:
    clouds = shapes.sample_clouds(500, 32, 0.02, rotate, (0, 0))
    assert torch.bincount(clouds.labels).tolist() == [50] * len(shapes.SHAPES)
    torch.testing.assert_close(clouds.points.mean(-1), torch.zeros(500, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(clouds.points.norm(dim=1).amax(-1), torch.ones(500, dtype=torch.float64))
    # Upright cones have more points below their middle than above; turned ones on average do not.
    cones = clouds.points[clouds.labels == list(shapes.SHAPES).index("cone")]
    third_moment = cones[:, 2].pow(3).mean()
    assert (abs(float(third_moment)) > 0.02) is (not rotate)


def test_points_lie_on_their_surfaces(shapes: ModuleType) -> None:
    x = {name: draw(20, 50, torch.Generator().manual_seed(0)) for name, draw in shapes.SHAPES.items()}
    radius = {name: points[..., :2].norm(dim=-1) for name, points in x.items()}
    height = {name: points[..., 2] for name, points in x.items()}
    angle = {name: torch.atan2(points[..., 1], points[..., 0]) % (2 * math.pi) for name, points in x.items()}
    distances = {
        "sphere": x["sphere"].norm(dim=-1) - 1,
        "box": x["box"].abs().amax(-1) - 1,
        "cylinder": torch.maximum(radius["cylinder"], height["cylinder"].abs()) - 1,
        "cone": torch.minimum(height["cone"] + 1, (height["cone"] - 1 + 2 * radius["cone"]).abs()),
        "torus": torch.hypot(radius["torus"] - 1, height["torus"]) - shapes.TUBE,
        "bowl": height["bowl"] - radius["bowl"].square(),
        "saddle": height["saddle"] - x["saddle"][..., 0].square() + x["saddle"][..., 1].square(),
        "octahedron": x["octahedron"].abs().sum(-1) - 1,
        "helix": angle["helix"].sub(2 * math.pi * (height["helix"] + 1)).div(2).sin(),
        "moebius": (radius["moebius"] - 1) * (angle["moebius"] / 2).sin()
        - height["moebius"] * (angle["moebius"] / 2).cos(),
    }
    assert set(distances) == set(shapes.SHAPES)
    for name, distance in distances.items():
        assert float(distance.abs().max()) < 1e-12, name
    assert float((x["box"].norm(dim=-1) - 1).abs().max()) > 0.1
