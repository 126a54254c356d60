"""Small files of the formats in which vector neurons and their data are published."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon_adapters.zoo.vector_neurons.models import build
from tests.modules import importable

EXAMPLE = Path(__file__).parents[2] / "examples" / "pointcloud"
CLASSES = 10
PARTS = 4
"""Two parts of each of two categories."""
SIZES: dict[str, dict[str, Any]] = {
    "pointnet": {"outputs": CLASSES},
    "dgcnn": {"outputs": CLASSES},
    "pointnet_partseg": {"outputs": PARTS, "categories": 2},
    "dgcnn_partseg": {"outputs": PARTS, "categories": 2},
}


def shapes() -> ModuleType:
    """The example's module of surfaces."""
    with importable(EXAMPLE):
        return importlib.import_module("shapes")


def write_clouds(path: Path, count: int = 40, points: int = 24, parts: bool = False, seed: int = 0) -> Path:
    """Write clouds as ModelNet40 and ShapeNet parts are distributed; a part is the upper or lower half."""
    import h5py

    source = shapes()
    clouds = source.sample_clouds(count, points, 0.02, False, (seed, 0))
    with h5py.File(path, "w") as file:
        file["data"] = clouds.points.transpose(1, 2).float().numpy()
        labels = clouds.labels % 2 if parts else clouds.labels
        file["label"] = labels.numpy().astype(np.uint8)[:, None]
        if parts:
            file["pid"] = (2 * labels[:, None] + (clouds.points[:, 2] > 0)).numpy().astype(np.uint8)
    return path


def network(kind: str, base: int = 6, pooling: str = "mean", neighbours: int | None = None) -> nn.Module:
    """A small network whose batch normalisation has seen some clouds, in evaluation mode."""
    torch.manual_seed(0)
    model = build(kind, base=base, pooling=pooling, neighbours=neighbours, **SIZES[kind])
    clouds = shapes().sample_clouds(40, 48, 0.02, False, (1, 0)).points.float()
    for rows in torch.split(clouds, 20):
        model(*inputs(kind, rows))
    return model.eval()


def trained(kind: str, steps: int = 20) -> nn.Module:
    """The small network after a few steps, so that its answers depend on the points."""
    model = network(kind).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    clouds = shapes().sample_clouds(40, 48, 0.02, False, (1, 0))
    points, labels = clouds.points.float(), clouds.labels
    if kind.endswith("partseg"):
        labels = 2 * (labels % 2)[:, None] + (clouds.points[:, 2] > 0)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(*inputs(kind, points))
        nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).backward()
        optimizer.step()
    return model.eval()


def inputs(kind: str, points: Tensor) -> tuple[Tensor, ...]:
    """Points, and for part segmentation one-hot categories in turn."""
    if not kind.endswith("partseg"):
        return (points,)
    return points, nn.functional.one_hot(torch.arange(len(points)) % 2, 2).to(points.dtype)


def write_checkpoint(path: Path, model: nn.Module, prefix: str = "") -> Path:
    """Write what the authors' training script writes; ``prefix`` is that of data-parallel training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.save(
        {
            "epoch": 7,
            "instance_acc": np.float64(0.5),
            "class_acc": np.float64(0.25),
            "model_state_dict": {prefix + key: value for key, value in model.state_dict().items()},
            "optimizer_state_dict": optimizer.state_dict(),
        },
        path,
    )
    return path
