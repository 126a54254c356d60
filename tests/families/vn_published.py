"""Keys and shapes of the state dicts that the authors' public code writes, in its order, for classes and for parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

Shapes = dict[str, tuple[int, ...]]


def normalisation(name: str, channels: int) -> Shapes:
    sizes = {"weight": (channels,), "bias": (channels,), "running_mean": (channels,), "running_var": (channels,)}
    return {f"{name}.{key}": size for key, size in {**sizes, "num_batches_tracked": ()}.items()}


def linear(name: str, channels: int, into: int) -> Shapes:
    return {f"{name}.weight": (into, channels), f"{name}.bias": (into,)}


def layer(name: str, channels: int, into: int, directions: int = 0) -> Shapes:
    return {
        f"{name}.map_to_feat.weight": (into, channels),
        **normalisation(f"{name}.batchnorm.bn", into),
        f"{name}.map_to_dir.weight": (directions or into, channels),
    }


def pooling_of(name: str, channels: int, pooling: str) -> Shapes:
    return {f"{name}.map_to_dir.weight": (channels, channels)} if pooling == "max" else {}


def invariants(name: str, channels: int) -> Shapes:
    half, quarter = channels // 2, channels // 4
    return {
        **layer(f"{name}.vn1", channels, half),
        **layer(f"{name}.vn2", half, quarter),
        f"{name}.vn_lin.weight": (3, quarter),
    }


def global_features(name: str, channels: int, pooling: str) -> Shapes:
    return {
        **layer(f"{name}.conv1", channels, 21),
        **layer(f"{name}.conv2", 21, 42),
        **layer(f"{name}.conv3", 42, 341),
        **layer(f"{name}.fc1", 341, 170),
        **layer(f"{name}.fc2", 170, 85),
        **pooling_of(f"{name}.pool", 341, pooling),
        f"{name}.fc3.map_to_feat.weight": (channels, 85),
    }


def published_pointnet(pooling: str) -> Shapes:
    return {
        **layer("feat.conv_pos", 3, 21),
        **layer("feat.conv1", 21, 21),
        **layer("feat.conv2", 42, 42),
        "feat.conv3.map_to_feat.weight": (341, 42),
        **normalisation("feat.bn3.bn", 341),
        **invariants("feat.std_feature", 682),
        **pooling_of("feat.pool", 21, pooling),
        **global_features("feat.fstn", 21, pooling),
        **linear("fc1", 2046, 512),
        **linear("fc2", 512, 256),
        **linear("fc3", 256, 40),
        **normalisation("bn1", 512),
        **normalisation("bn2", 256),
    }


def published_dgcnn(pooling: str) -> Shapes:
    pools = [pooling_of(f"pool{index + 1}", channels, pooling) for index, channels in enumerate((21, 21, 42, 85))]
    return {
        **layer("conv1", 2, 21),
        **layer("conv2", 42, 21),
        **layer("conv3", 42, 42),
        **layer("conv4", 84, 85),
        **layer("conv5", 169, 341, directions=1),
        **invariants("std_feature", 682),
        **linear("linear1", 4092, 512),
        **normalisation("bn1", 512),
        **linear("linear2", 512, 256),
        **normalisation("bn2", 256),
        **linear("linear3", 256, 40),
        **{name: shape for shapes in pools for name, shape in shapes.items()},
    }


def published_pointnet_partseg(pooling: str) -> Shapes:
    return {
        **layer("conv_pos", 3, 21),
        **layer("conv1", 21, 21),
        **layer("conv2", 21, 42),
        **layer("conv3", 42, 42),
        **layer("conv4", 84, 170),
        "conv5.map_to_feat.weight": (682, 170),
        **normalisation("bn5.bn", 682),
        **invariants("std_feature", 1364),
        **pooling_of("pool", 21, pooling),
        **global_features("fstn", 42, pooling),
        **convolution("convs1", 9025, 256),
        **convolution("convs2", 256, 256),
        **convolution("convs3", 256, 128),
        **convolution("convs4", 128, 50),
        **normalisation("bns1", 256),
        **normalisation("bns2", 256),
        **normalisation("bns3", 128),
    }


def published_dgcnn_partseg(pooling: str) -> Shapes:
    pools = [pooling_of(f"pool{index}", 21, pooling) for index in (1, 2, 3)]
    return {
        **normalisation("bn7", 64),
        **normalisation("bn8", 256),
        **normalisation("bn9", 256),
        **normalisation("bn10", 128),
        **layer("conv1", 2, 21),
        **layer("conv2", 21, 21),
        **layer("conv3", 42, 21),
        **layer("conv4", 21, 21),
        **layer("conv5", 42, 21),
        **{name: shape for shapes in pools for name, shape in shapes.items()},
        **layer("conv6", 63, 341, directions=1),
        **invariants("std_feature", 682),
        **block("conv8", 2299, 256),
        **block("conv7", 16, 64),
        **block("conv9", 256, 256),
        **block("conv10", 256, 128),
        "conv11.weight": (50, 128, 1),
    }


def convolution(name: str, channels: int, into: int) -> Shapes:
    return {f"{name}.weight": (into, channels, 1), f"{name}.bias": (into,)}


def block(name: str, channels: int, into: int) -> Shapes:
    return {f"{name}.0.weight": (into, channels, 1), **normalisation(f"{name}.1", into)}


PUBLISHED: Mapping[str, Callable[[str], Shapes]] = MappingProxyType(
    {
        "pointnet": published_pointnet,
        "dgcnn": published_dgcnn,
        "pointnet_partseg": published_pointnet_partseg,
        "dgcnn_partseg": published_dgcnn_partseg,
    }
)
"""Kind of network to its keys and shapes, by pooling."""
