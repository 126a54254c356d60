"""VN-PointNet for classification, with the parameter names and shapes of the authors' public code.

Deng et al., "Vector Neurons: A General Framework for SO(3)-Equivariant Networks" (ICCV 2021). The network is invariant
under rotations, but not under reflections: its first features contain cross products.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from surgeon_adapters.zoo.vector_neurons.layers import (
    Pooling,
    VNBatchNorm,
    VNLinear,
    VNLinearLeakyReLU,
    VNStdFeature,
    beside,
    neighbour_features,
    pool,
)


class STNkd(nn.Module):
    """Global features of a cloud, which every point gets to see.

    Args:
        channels: number of vectors per point, in and out.
        base: width; see :class:`VNPointNet`.
        pooling: how points are pooled.
    """

    def __init__(self, channels: int, base: int, pooling: Pooling) -> None:
        super().__init__()
        small, middle, large = base // 3, 2 * base // 3, 16 * base // 3
        self.conv1 = VNLinearLeakyReLU(channels, small, dim=4, negative_slope=0.0)
        self.conv2 = VNLinearLeakyReLU(small, middle, dim=4, negative_slope=0.0)
        self.conv3 = VNLinearLeakyReLU(middle, large, dim=4, negative_slope=0.0)
        self.fc1 = VNLinearLeakyReLU(large, 8 * base // 3, dim=3, negative_slope=0.0)
        self.fc2 = VNLinearLeakyReLU(8 * base // 3, 4 * base // 3, dim=3, negative_slope=0.0)
        self.pool = pool(pooling, large)
        self.fc3 = VNLinear(4 * base // 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels, 3, n) to (b, channels, 3)."""
        pooled = self.pool(self.conv3(self.conv2(self.conv1(x))))
        result: Tensor = self.fc3(self.fc2(self.fc1(pooled)))
        return result


class PointNetEncoder(nn.Module):
    """Invariant features of a cloud.

    Args:
        base: width; see :class:`VNPointNet`.
        neighbours: number of nearest neighbours.
        pooling: how neighbours are pooled.
    """

    def __init__(self, base: int, neighbours: int, pooling: Pooling) -> None:
        super().__init__()
        small, middle, large = base // 3, 2 * base // 3, 16 * base // 3
        self.neighbours = neighbours
        self.conv_pos = VNLinearLeakyReLU(3, small, dim=5, negative_slope=0.0)
        self.conv1 = VNLinearLeakyReLU(small, small, dim=4, negative_slope=0.0)
        self.conv2 = VNLinearLeakyReLU(2 * small, middle, dim=4, negative_slope=0.0)
        self.conv3 = VNLinear(middle, large)
        self.bn3 = VNBatchNorm(large, dim=4)
        self.std_feature = VNStdFeature(2 * large, dim=4, negative_slope=0.0)
        self.pool = pool(pooling, small)
        self.fstn = STNkd(small, base, pooling)

    def forward(self, points: Tensor) -> Tensor:
        """Map (b, 3, n) to (b, 6 * (16 * base // 3))."""
        x = neighbour_features(points.unsqueeze(1), self.neighbours, cross=True)
        x = self.conv1(self.pool(self.conv_pos(x)))
        x = beside(x, self.fstn(x).unsqueeze(-1))
        x = self.bn3(self.conv3(self.conv2(x)))
        x = beside(x, x.mean(-1, keepdim=True))
        invariants: Tensor = self.std_feature(x)[0]
        return invariants.flatten(1, 2).amax(-1)


class VNPointNet(nn.Module):
    """Classifier of point clouds.

    Args:
        classes: number of classes.
        base: width; 64 gives the published shapes, 3 is the least.
        neighbours: number of nearest neighbours, at most the number of points.
        pooling: "mean" or "max".
        dropout: probability in the head.
    """

    def __init__(
        self,
        classes: int = 40,
        base: int = 64,
        neighbours: int = 20,
        pooling: Pooling = "mean",
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        self.base, self.neighbours, self.pooling = base, neighbours, pooling
        self.feat = PointNetEncoder(base, neighbours, pooling)
        self.fc1 = nn.Linear(16 * base // 3 * 6, 8 * base)
        self.fc2 = nn.Linear(8 * base, 4 * base)
        self.fc3 = nn.Linear(4 * base, classes)
        self.dropout = nn.Dropout(dropout)
        self.bn1 = nn.BatchNorm1d(8 * base)
        self.bn2 = nn.BatchNorm1d(4 * base)

    def forward(self, points: Tensor) -> Tensor:
        """Map points of shape (b, 3, n) to logits of shape (b, classes)."""
        x = functional.relu(self.bn1(self.fc1(self.feat(points))))
        x = functional.relu(self.bn2(self.dropout(self.fc2(x))))
        logits: Tensor = self.fc3(x)
        return logits
