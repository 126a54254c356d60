"""Write a small checkpoint of VN-PointNet and data files, both in the formats in which vector neurons are published.

``vn_pointnet.pth`` is the container of the authors' training script; ``ply_data_train0.h5`` and ``ply_data_test0.h5``
are laid out like ModelNet40. The network is trained on clouds with more noise than the files have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import numpy as np
import torch
from shapes import SHAPES, sample_clouds
from torch import nn
from torch.nn import functional

from surgeon_adapters.zoo.vector_neurons.pointnet import VNPointNet

POINTS = 64
TRAIN_NOISE, FILE_NOISE = 0.06, 0.02


def write_clouds(path: Path, count: int, seed: int) -> None:
    """Write clouds (count, points, 3) and their labels (count, 1)."""
    clouds = sample_clouds(count, POINTS, FILE_NOISE, False, (seed, 0))
    with h5py.File(path, "w") as file:
        file["data"] = clouds.points.transpose(1, 2).float().numpy()
        file["label"] = clouds.labels.numpy().astype(np.uint8)[:, None]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, count: int = 400, batch: int = 20) -> None:
    """Train on noisy clouds."""
    clouds = sample_clouds(count, POINTS, TRAIN_NOISE, False, (100, 0))
    points, labels = clouds.points.float(), clouds.labels
    for _ in range(epochs):
        for rows in torch.randperm(count).split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(model(points[rows]), labels[rows]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, count: int = 200) -> float:
    """Return the share of correct answers on fresh noisy clouds."""
    clouds = sample_clouds(count, POINTS, TRAIN_NOISE, False, (101, 0))
    answers = model.eval()(clouds.points.float()).argmax(-1)
    return float((answers == clouds.labels).double().mean())


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args()
    torch.manual_seed(0)
    model = VNPointNet(len(SHAPES), base=12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    train(model, optimizer, options.epochs)
    reached = accuracy(model)
    print(f"accuracy {reached:.3f}")
    state = {"epoch": options.epochs, "instance_acc": np.float64(reached), "model_state_dict": model.state_dict()}
    torch.save({**state, "optimizer_state_dict": optimizer.state_dict()}, options.output / "vn_pointnet.pth")
    write_clouds(options.output / "ply_data_train0.h5", 400, seed=0)
    write_clouds(options.output / "ply_data_test0.h5", 400, seed=1)


if __name__ == "__main__":
    main()
