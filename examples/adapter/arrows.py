"""Stands for a library of somebody else's: networks on the positions and velocities of particles.

Nothing in here knows of surgeon. Its checkpoints are dicts of a format number, a name and the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

FORMAT = 1


class Mix(nn.Module):
    """Linear on channels of vectors: (b, n, c, 3) to (b, n, c', 3), ``y_o = sum_c W[o, c] x_c``."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into) / into**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed vectors."""
        return torch.einsum("oc,bncx->bnox", self.weight, x)


class Swing(nn.Module):
    """Vectors mixed and scaled by functions of their lengths; each particle also hears the mean of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.own, self.others = Mix(channels, channels), Mix(channels, channels)
        self.scale = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors of the same shape."""
        y = self.own(x) + self.others(x.mean(1, keepdim=True))
        return x + y * torch.sigmoid(self.scale(y.square().sum(-1)))[..., None]


class ArrowNet(nn.Module):
    """Predict where particles move: equivariant under rotations and reflections."""

    def __init__(self, channels: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.lift = Mix(2, channels)
        self.layers = nn.ModuleList(Swing(channels) for _ in range(layers))
        self.out = Mix(channels, 1)

    def forward(self, positions: Tensor, velocities: Tensor) -> Tensor:
        """Return displacements of shape (b, n, 3), from positions and velocities of this shape."""
        x = self.lift(torch.stack([positions - positions.mean(1, keepdim=True), velocities], dim=2))
        for layer in self.layers:
            x = layer(x)
        return self.out(x)[:, :, 0]


def save(net: ArrowNet, path: str | Path, name: str = "") -> None:
    """Write a checkpoint of this library."""
    torch.save({"arrows_format": FORMAT, "name": name, "weights": net.state_dict()}, path)


def is_checkpoint(path: str | Path) -> bool:
    """Tell whether a file is a checkpoint of this library."""
    try:
        content = torch.load(path, weights_only=True)
    except Exception:  # of another kind, in whatever way
        return False
    return isinstance(content, dict) and content.get("arrows_format") == FORMAT


def network_of(weights: Mapping[str, Tensor]) -> ArrowNet:
    """Return a network of the sizes that some weights have; it has weights of its own."""
    return ArrowNet(len(weights["lift.weight"]), sum(key.endswith(".own.weight") for key in weights))


def load(path: str | Path) -> ArrowNet:
    """Open a checkpoint of this library."""
    if not is_checkpoint(path):
        raise ValueError(f"{path} is no checkpoint of format {FORMAT}")
    weights = torch.load(path, weights_only=True)["weights"]
    net = network_of(weights).to(weights["lift.weight"].dtype)
    net.load_state_dict(weights)
    return net
