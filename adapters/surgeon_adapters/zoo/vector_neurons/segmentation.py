"""VN-PointNet and VN-DGCNN for part segmentation, with the parameter names and shapes of the authors' public code.

Deng et al., "Vector Neurons: A General Framework for SO(3)-Equivariant Networks" (ICCV 2021). Each point of an object
whose category is known gets a part. VN-DGCNN is invariant under rotations and reflections, VN-PointNet under rotations.
"""

from __future__ import annotations

import torch
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
    times_frame,
)
from surgeon_adapters.zoo.vector_neurons.pointnet import STNkd


class VNPointNetPartSeg(nn.Module):
    """Parts of point clouds.

    Args:
        parts: number of parts of all categories together.
        base: width; 64 gives the published shapes, 3 is the least.
        neighbours: number of nearest neighbours, at most the number of points.
        pooling: "mean" or "max".
        categories: number of categories of objects.
    """

    def __init__(
        self,
        parts: int = 50,
        base: int = 64,
        neighbours: int = 40,
        pooling: Pooling = "mean",
        categories: int = 16,
    ) -> None:
        super().__init__()
        small, middle, wide, large = base // 3, 2 * base // 3, 8 * base // 3, 32 * base // 3
        self.base, self.neighbours, self.pooling, self.categories = base, neighbours, pooling, categories
        self.conv_pos = VNLinearLeakyReLU(3, small, dim=5, negative_slope=0.0)
        self.conv1 = VNLinearLeakyReLU(small, small, dim=4, negative_slope=0.0)
        self.conv2 = VNLinearLeakyReLU(small, middle, dim=4, negative_slope=0.0)
        self.conv3 = VNLinearLeakyReLU(middle, middle, dim=4, negative_slope=0.0)
        self.conv4 = VNLinearLeakyReLU(2 * middle, wide, dim=4, negative_slope=0.0)
        self.conv5 = VNLinear(wide, large)
        self.bn5 = VNBatchNorm(large, dim=4)
        self.std_feature = VNStdFeature(2 * large, dim=4, negative_slope=0.0)
        self.pool = pool(pooling, small)
        self.fstn = STNkd(middle, base, pooling)
        channels = 12 * large + categories + 3 * (small + 2 * middle + wide)
        self.convs1 = nn.Conv1d(channels, 4 * base, 1)
        self.convs2 = nn.Conv1d(4 * base, 4 * base, 1)
        self.convs3 = nn.Conv1d(4 * base, 2 * base, 1)
        self.convs4 = nn.Conv1d(2 * base, parts, 1)
        self.bns1 = nn.BatchNorm1d(4 * base)
        self.bns2 = nn.BatchNorm1d(4 * base)
        self.bns3 = nn.BatchNorm1d(2 * base)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Map points (b, 3, n) and one-hot categories (b, categories) to logits of shape (b, n, parts)."""
        x = self.pool(self.conv_pos(neighbour_features(points.unsqueeze(1), self.neighbours, cross=True)))
        first = self.conv1(x)
        second = self.conv2(first)
        third = self.conv3(second)
        x = beside(third, self.fstn(third).unsqueeze(-1))
        fourth = self.conv4(x)
        x = self.bn5(self.conv5(fourth))
        x = beside(x, x.mean(-1, keepdim=True))
        invariants, frame = self.std_feature(x)
        own = times_frame(torch.cat([first, second, third, fourth], dim=1), frame).flatten(1, 2)
        invariants = invariants.flatten(1, 2)
        cloud = torch.cat([invariants.amax(-1), categories], dim=1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
        x = torch.cat([cloud, own, invariants], dim=1)
        x = functional.relu(self.bns1(self.convs1(x)))
        x = functional.relu(self.bns2(self.convs2(x)))
        x = functional.relu(self.bns3(self.convs3(x)))
        logits: Tensor = self.convs4(x)
        return logits.transpose(1, 2)


class VNDGCNNPartSeg(nn.Module):
    """Parts of point clouds; neighbours are searched anew before every stage, by the distance of features.

    The normalisations of the head have two names each, as in the published code: ``bn8`` is ``conv8.1`` too.

    Args:
        parts: number of parts of all categories together.
        base: width; 64 gives the published shapes, 3 is the least.
        neighbours: number of nearest neighbours, at most the number of points.
        pooling: "mean" or "max".
        categories: number of categories of objects.
        dropout: probability in the head.
    """

    def __init__(
        self,
        parts: int = 50,
        base: int = 64,
        neighbours: int = 40,
        pooling: Pooling = "mean",
        categories: int = 16,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        small, large = base // 3, 16 * base // 3
        self.base, self.neighbours, self.pooling, self.categories = base, neighbours, pooling, categories
        self.bn7, self.bn8 = nn.BatchNorm1d(base), nn.BatchNorm1d(4 * base)
        self.bn9, self.bn10 = nn.BatchNorm1d(4 * base), nn.BatchNorm1d(2 * base)
        self.conv1 = VNLinearLeakyReLU(2, small)
        self.conv2 = VNLinearLeakyReLU(small, small)
        self.conv3 = VNLinearLeakyReLU(2 * small, small)
        self.conv4 = VNLinearLeakyReLU(small, small)
        self.conv5 = VNLinearLeakyReLU(2 * small, small)
        self.pool1, self.pool2, self.pool3 = (pool(pooling, small) for _ in range(3))
        self.conv6 = VNLinearLeakyReLU(3 * small, large, dim=4, share_nonlinearity=True)
        self.std_feature = VNStdFeature(2 * large, dim=4)
        self.conv8 = _block(6 * large + base + 9 * small, self.bn8)
        self.conv7 = _block(categories, self.bn7)
        self.dp1 = nn.Dropout(dropout)
        self.conv9 = _block(4 * base, self.bn9)
        self.dp2 = nn.Dropout(dropout)
        self.conv10 = _block(4 * base, self.bn10)
        self.conv11 = nn.Conv1d(2 * base, parts, 1, bias=False)

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """Map points (b, 3, n) and one-hot categories (b, categories) to logits of shape (b, n, parts)."""
        x = neighbour_features(points.unsqueeze(1), self.neighbours)
        first = self.pool1(self.conv2(self.conv1(x)))
        second = self.pool2(self.conv4(self.conv3(neighbour_features(first, self.neighbours))))
        third = self.pool3(self.conv5(neighbour_features(second, self.neighbours)))
        vectors = torch.cat([first, second, third], dim=1)
        x = self.conv6(vectors)
        x = beside(x, x.mean(-1, keepdim=True))
        invariants, frame = self.std_feature(x)
        own = times_frame(vectors, frame).flatten(1, 2)
        cloud = [invariants.flatten(1, 2).amax(-1, keepdim=True), self.conv7(categories.unsqueeze(-1))]
        x = torch.cat([torch.cat(cloud, dim=1).expand(-1, -1, points.shape[-1]), own], dim=1)
        x = self.conv10(self.dp2(self.conv9(self.dp1(self.conv8(x)))))
        logits: Tensor = self.conv11(x)
        return logits.transpose(1, 2)


def _block(channels: int, norm: nn.BatchNorm1d) -> nn.Sequential:
    convolution = nn.Conv1d(channels, norm.num_features, kernel_size=1, bias=False)
    return nn.Sequential(convolution, norm, nn.LeakyReLU(negative_slope=0.2))
