"""Layers of vector neurons: features are lists of 3-vectors, and weights mix the vectors of one point.

Deng et al., "Vector Neurons: A General Framework for SO(3)-Equivariant Networks" (ICCV 2021). Parameter names and
shapes are those of the authors' public code, so that state dicts have the same keys in the same order.

Features have shape (b, c, 3), (b, c, 3, n) or (b, c, 3, n, k): batch, channels, components, points, neighbours. Every
weight is an ``nn.Linear`` without bias on the channel axis; it sees channels and the last axis exchanged, so its input
is (b, 3, c), (b, n, 3, c) or (b, k, 3, n, c).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

EPS = 1e-6
Pooling = Literal["mean", "max"]


class VNLinear(nn.Module):
    """Linear map of channels: ``y[:, d] = sum_c W[d, c] x[:, c]``.

    Args:
        in_channels: number of vectors per point.
        out_channels: number of vectors per point in the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, 3, ...) to (b, out_channels, 3, ...)."""
        return map_channels(self.map_to_feat, x)


class VNLeakyReLU(nn.Module):
    """Leaky ReLU: where a vector points against its learned direction, the component along it shrinks.

    Args:
        in_channels: number of vectors per point.
        share_nonlinearity: one direction for all channels instead of one each.
        negative_slope: factor of the shrunk component.
    """

    def __init__(self, in_channels: int, share_nonlinearity: bool = False, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.map_to_dir = nn.Linear(in_channels, 1 if share_nonlinearity else in_channels, bias=False)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, 3, ...) to the same shape."""
        return bend(x, map_channels(self.map_to_dir, x), self.negative_slope)


class VNLinearLeakyReLU(nn.Module):
    """Linear map, batch normalisation of lengths and leaky ReLU, whose direction comes from the layer's input.

    Args:
        in_channels: number of vectors per point.
        out_channels: number of vectors per point in the output.
        dim: number of axes of the features: 3, 4 or 5.
        share_nonlinearity: one direction for all channels instead of one each.
        negative_slope: factor of the component against the direction.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dim: int = 5,
        share_nonlinearity: bool = False,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)
        self.batchnorm = VNBatchNorm(out_channels, dim)
        self.map_to_dir = nn.Linear(in_channels, 1 if share_nonlinearity else out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, 3, ...) to (b, out_channels, 3, ...)."""
        normalised = self.batchnorm(map_channels(self.map_to_feat, x))
        return bend(normalised, map_channels(self.map_to_dir, x), self.negative_slope)


class VNBatchNorm(nn.Module):
    """Batch normalisation of the lengths of vectors; their directions stay.

    Args:
        num_features: number of vectors per point.
        dim: number of axes of the features: 3, 4 or 5.
    """

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features) if dim == 5 else nn.BatchNorm1d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, num_features, 3, ...) to the same shape."""
        length = torch.linalg.vector_norm(x, dim=2) + EPS
        scaled: Tensor = x * (self.bn(length) / length).unsqueeze(2)
        return scaled


class VNMaxPool(nn.Module):
    """Per channel, the vector along the last axis that points furthest in its learned direction.

    Args:
        in_channels: number of vectors per point.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.map_to_dir = nn.Linear(in_channels, in_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, 3, ..., k) to (b, in_channels, 3, ...)."""
        score = (x * map_channels(self.map_to_dir, x)).sum(2, keepdim=True)
        furthest = score.argmax(-1, keepdim=True).expand(*x.shape[:-1], 1)
        return x.gather(-1, furthest).squeeze(-1)


class MeanPool(nn.Module):
    """Mean along the last axis; it has no parameters, like the function in the published code."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., k) to (...)."""
        return x.mean(-1)


class VNStdFeature(nn.Module):
    """Invariant features: the vectors in three learned vectors of the same point, ``y = x^T z``.

    Args:
        in_channels: number of vectors per point, at least 4.
        dim: number of axes of the features: 3, 4 or 5.
        share_nonlinearity: as in :class:`VNLinearLeakyReLU`.
        negative_slope: as in :class:`VNLinearLeakyReLU`.
    """

    def __init__(
        self, in_channels: int, dim: int = 4, share_nonlinearity: bool = False, negative_slope: float = 0.2
    ) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        self.vn1 = VNLinearLeakyReLU(in_channels, half, dim, share_nonlinearity, negative_slope)
        self.vn2 = VNLinearLeakyReLU(half, quarter, dim, share_nonlinearity, negative_slope)
        self.vn_lin = nn.Linear(quarter, 3, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, in_channels, 3, ...) to invariants of the same shape; also return the frame, (b, 3, 3, ...)."""
        frame = map_channels(self.vn_lin, self.vn2(self.vn1(x)))
        return times_frame(x, frame), frame


def times_frame(x: Tensor, frame: Tensor) -> Tensor:
    """Return the products of all vectors with the three of a frame: ``y[:, c, f] = sum_v x[:, c, v] z[:, f, v]``.

    Args:
        x: shape (b, c, 3, ...).
        frame: shape (b, 3, 3, ...): vector, component.
    """
    return torch.einsum("bcv...,bfv...->bcf...", x, frame)


def beside(x: Tensor, cloud: Tensor) -> Tensor:
    """Put features of the whole cloud, shape (b, c, 3, 1), beside those of every point, shape (b, c, 3, n)."""
    return torch.cat([x, cloud.expand_as(x)], dim=1)


def map_channels(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to axis 1 of (b, c, 3, ...)."""
    result: Tensor = linear(x.transpose(1, -1)).transpose(1, -1)
    return result


def bend(x: Tensor, direction: Tensor, negative_slope: float) -> Tensor:
    """Shrink the component of x along a direction where the two point against each other.

    Args:
        x: shape (b, c, 3, ...).
        direction: shape (b, c or 1, 3, ...).
        negative_slope: factor of that component.

    Returns:
        The shape of x.
    """
    along = (x * direction).sum(2, keepdim=True).clamp(max=0)
    squared = direction.square().sum(2, keepdim=True)
    return x - (1 - negative_slope) * (along / (squared + EPS)) * direction


def pool(kind: Pooling, channels: int) -> nn.Module:
    """Return the pooling of a kind along the last axis."""
    return VNMaxPool(channels) if kind == "max" else MeanPool()


def neighbour_features(x: Tensor, neighbours: int, cross: bool = False) -> Tensor:
    """Return what the nearest neighbours of each point look like from there.

    Args:
        x: shape (b, c, 3, n).
        neighbours: number k of nearest neighbours by the distance of all 3c features, the point itself included.
        cross: append the cross products of neighbour and point; the features are then no longer odd under inversion.

    Returns:
        Shape (b, 2c or 3c, 3, n, k): differences to the point, the point's own features, cross products.
    """
    b, c, _, n = x.shape
    flat = x.reshape(b, 3 * c, n)
    squares = flat.square().sum(1)
    distances = squares.unsqueeze(1) - 2 * flat.transpose(1, 2) @ flat + squares.unsqueeze(2)
    nearest = distances.topk(neighbours, dim=-1, largest=False).indices  # (b, n, k)
    index = nearest.reshape(b, 1, n * neighbours).expand(b, 3 * c, n * neighbours)
    other = flat.gather(-1, index).reshape(b, c, 3, n, neighbours)
    own = x.unsqueeze(-1).expand_as(other)
    parts = [other - own, own]
    return torch.cat([*parts, torch.linalg.cross(other, own, dim=2)] if cross else parts, dim=1)
