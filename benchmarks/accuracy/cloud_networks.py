"""Networks that table C sets beside vector neurons: a PointNet made invariant from outside, by turning what it sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from scipy.stats import special_ortho_group
from torch import Tensor, nn

ROTATIONS = 4
"""Forwards of equi-tuning."""


class PointNet(nn.Module):
    """Classifier without symmetry: the same layers for every point, their maximum, and a head.

    Args:
        classes: number of classes.
        base: width.
    """

    def __init__(self, classes: int, base: int) -> None:
        super().__init__()
        widths = [3, 4 * base, 8 * base, 32 * base]
        self.points = nn.Sequential(*(_layer(nn.Conv1d(a, b, 1), b) for a, b in zip(widths, widths[1:], strict=False)))
        self.head = nn.Sequential(_layer(nn.Linear(32 * base, 8 * base), 8 * base), nn.Linear(8 * base, classes))

    def forward(self, points: Tensor) -> Tensor:
        """Map points of shape (b, 3, n) to logits of shape (b, classes)."""
        logits: Tensor = self.head(self.points(points).amax(-1))
        return logits


class EquiTuned(nn.Module):
    """Mean of the outputs for several random rotations (Basu et al., 2023): other ones for each batch of training.

    Args:
        network: of points (b, 3, n).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        """Map points of shape (b, 3, n) to logits of shape (b, classes)."""
        seed = int(torch.randint(2**31, ())) if self.training else 0
        rotations = torch.as_tensor(special_ortho_group.rvs(3, ROTATIONS, random_state=seed)).to(points)
        return torch.stack([self.network(rotation @ points) for rotation in rotations]).mean(0)


class Canonical(nn.Module):
    """A network that sees every cloud along its principal axes, which point to where its third moments are positive.

    Args:
        network: of points (b, 3, n).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Tensor) -> Tensor:
        """Map points of shape (b, 3, n) to logits of shape (b, classes)."""
        logits: Tensor = self.network(principal_frame(points) @ points)
        return logits


def principal_frame(points: Tensor) -> Tensor:
    """Return the rotations, of shape (b, 3, 3), to the principal axes of clouds (b, 3, n): they turn with a cloud."""
    axes = torch.linalg.eigh(points @ points.mT).eigenvectors.mT
    skewness = (axes @ points).pow(3).sum(-1, keepdim=True)
    first, second, _ = (axes * torch.where(skewness < 0, -1.0, 1.0)).unbind(1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=1)


def _layer(linear: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU())


BESIDE: Mapping[str, Callable[[int, int], nn.Module]] = {
    f"PointNet, equi-tuned with {ROTATIONS} rotations": lambda classes, base: EquiTuned(PointNet(classes, base)),
    "PointNet, clouds along their principal axes": lambda classes, base: Canonical(PointNet(classes, base)),
}
