"""VN-DGCNN for classification, with the parameter names and shapes of the authors' public code.

Deng et al., "Vector Neurons: A General Framework for SO(3)-Equivariant Networks" (ICCV 2021). The neighbours of a point
are searched anew before every layer, by the distance of its features. The network is invariant under rotations and
reflections.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon_adapters.zoo.vector_neurons.layers import (
    Pooling,
    VNLinearLeakyReLU,
    VNStdFeature,
    beside,
    neighbour_features,
    pool,
)


class VNDGCNN(nn.Module):
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
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        small, middle, wide, large = base // 3, 2 * base // 3, 4 * base // 3, 16 * base // 3
        self.base, self.neighbours, self.pooling = base, neighbours, pooling
        self.conv1 = VNLinearLeakyReLU(2, small)
        self.conv2 = VNLinearLeakyReLU(2 * small, small)
        self.conv3 = VNLinearLeakyReLU(2 * small, middle)
        self.conv4 = VNLinearLeakyReLU(2 * middle, wide)
        self.conv5 = VNLinearLeakyReLU(wide + middle + 2 * small, large, dim=4, share_nonlinearity=True)
        self.std_feature = VNStdFeature(2 * large, dim=4)
        self.linear1 = nn.Linear(12 * large, 8 * base)
        self.bn1 = nn.BatchNorm1d(8 * base)
        self.dp1 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(8 * base, 4 * base)
        self.bn2 = nn.BatchNorm1d(4 * base)
        self.dp2 = nn.Dropout(dropout)
        self.linear3 = nn.Linear(4 * base, classes)
        self.pool1 = pool(pooling, small)
        self.pool2 = pool(pooling, small)
        self.pool3 = pool(pooling, middle)
        self.pool4 = pool(pooling, wide)

    def forward(self, points: Tensor) -> Tensor:
        """Map points of shape (b, 3, n) to logits of shape (b, classes)."""
        x1 = self.pool1(self.conv1(neighbour_features(points.unsqueeze(1), self.neighbours)))
        x2 = self.pool2(self.conv2(neighbour_features(x1, self.neighbours)))
        x3 = self.pool3(self.conv3(neighbour_features(x2, self.neighbours)))
        x4 = self.pool4(self.conv4(neighbour_features(x3, self.neighbours)))
        x = self.conv5(torch.cat([x1, x2, x3, x4], dim=1))
        x = beside(x, x.mean(-1, keepdim=True))
        invariants = self.std_feature(x)[0].flatten(1, 2)
        x = torch.cat([invariants.amax(-1), invariants.mean(-1)], dim=1)
        x = self.dp1(functional.leaky_relu(self.bn1(self.linear1(x)), negative_slope=0.2))
        x = self.dp2(functional.leaky_relu(self.bn2(self.linear2(x)), negative_slope=0.2))
        logits: Tensor = self.linear3(x)
        return logits
