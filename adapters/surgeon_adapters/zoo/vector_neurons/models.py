"""Build the published networks from plain data, and recognise their state dicts by keys and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon_adapters.recognition import require_same_form
from surgeon_adapters.zoo.vector_neurons.dgcnn import VNDGCNN
from surgeon_adapters.zoo.vector_neurons.layers import Pooling
from surgeon_adapters.zoo.vector_neurons.pointnet import VNPointNet
from surgeon_adapters.zoo.vector_neurons.segmentation import VNDGCNNPartSeg, VNPointNetPartSeg

FACTORY = "surgeon_adapters.zoo.vector_neurons.models:build"
Kind = Literal["pointnet", "dgcnn", "pointnet_partseg", "dgcnn_partseg"]
Network = VNPointNet | VNDGCNN | VNPointNetPartSeg | VNDGCNNPartSeg


@dataclass(frozen=True)
class ModelSettings:
    """What a network is built from.

    Attributes:
        kind: which of the four.
        outputs: number of classes, or of parts.
        base: width; 64 gives the published shapes.
        pooling: "mean" or "max".
        categories: number of categories that part segmentation is told; None for classification.
        neighbours: number of nearest neighbours; a state dict does not tell it, the published code takes 20, and 40
            for part segmentation.
    """

    kind: Kind
    outputs: int
    base: int = 64
    pooling: Pooling = "mean"
    categories: int | None = None
    neighbours: int | None = None

    @property
    def words(self) -> str:
        """What it is, for messages."""
        what, title = ("parts" if self.segments else "classes"), _CLASSES[self.kind].__name__
        return f"{title} of width {self.base} with {self.pooling} pooling and {self.outputs} {what}"

    @property
    def segments(self) -> bool:
        """Whether it is for part segmentation."""
        return self.kind.endswith("partseg")


@dataclass(frozen=True)
class _Marks:
    """Where a kind of network shows its sizes: keys of weights.

    Attributes:
        only: a key that no other kind has.
        width: its number of rows is ``factor * base``.
        outputs: its number of rows is that of classes or parts.
    """

    only: str
    width: str
    factor: int
    outputs: str


_CLASSES: Mapping[Kind, type[Network]] = MappingProxyType(
    {
        "pointnet": VNPointNet,
        "dgcnn": VNDGCNN,
        "pointnet_partseg": VNPointNetPartSeg,
        "dgcnn_partseg": VNDGCNNPartSeg,
    }
)
_MARKS: Mapping[Kind, _Marks] = MappingProxyType(
    {
        "pointnet": _Marks("feat.conv_pos.map_to_feat.weight", "fc1.weight", 8, "fc3.weight"),
        "dgcnn": _Marks("conv4.map_to_feat.weight", "linear1.weight", 8, "linear3.weight"),
        "pointnet_partseg": _Marks("conv_pos.map_to_feat.weight", "convs1.weight", 4, "convs4.weight"),
        "dgcnn_partseg": _Marks("conv6.map_to_feat.weight", "conv8.0.weight", 4, "conv11.weight"),
    }
)


def build(
    kind: str,
    outputs: int,
    base: int = 64,
    pooling: str = "mean",
    categories: int | None = None,
    neighbours: int | None = None,
) -> nn.Module:
    """Build a network with weights of its own.

    Args:
        kind, outputs, base, pooling, categories, neighbours: see :class:`ModelSettings`.

    Raises:
        CheckpointError: if the settings are unknown or too small.

    Example:
        >>> build("pointnet", 10, base=6)(torch.randn(2, 3, 32)).shape
        torch.Size([2, 10])
    """
    network: Any = next((network for name, network in _CLASSES.items() if name == kind), None)
    if network is None:
        raise CheckpointError(f"expected a kind among {', '.join(_CLASSES)}, got {kind!r}: correct the settings")
    if pooling not in get_args(Pooling):
        raise CheckpointError(f"expected pooling to be mean or max, got {pooling!r}: correct the settings")
    if base < 3 or outputs < 1:
        raise CheckpointError(
            f"expected a base width of at least 3 and at least one output, got {base} and {outputs}: "
            "correct the settings"
        )
    optional = {"neighbours": neighbours, "categories": categories}
    given: dict[str, Any] = {key: value for key, value in optional.items() if value is not None}
    module: nn.Module = network(outputs, base, pooling=pooling, **given)
    return module


def recognised(tensors: Mapping[str, Tensor]) -> ModelSettings | None:
    """Return what a state dict belongs to; None if it is none of the four networks.

    Raises:
        CheckpointError: if it is nearly one of them: what was recognised, and what differs.
    """
    kind = next(
        (kind for kind, marks in _MARKS.items() if {marks.only, marks.width, marks.outputs} <= set(tensors)), None
    )
    if kind is None:
        return None
    marks = _MARKS[kind]
    rows, outputs = len(tensors[marks.width]), len(tensors[marks.outputs])
    pooling: Pooling = "max" if any("pool" in key for key in tensors) else "mean"
    settings = ModelSettings(kind, outputs, rows // marks.factor, pooling)
    if settings.segments:
        settings = replace(settings, categories=_categories(settings, tensors))
    require_same_form(settings.words, _shapes(settings) if settings.base >= 3 else {}, tensors)
    return settings


def built_from(module: nn.Module) -> ModelSettings | None:
    """Return what a network of this package was built from; None for any other module."""
    kind = next((kind for kind, network in _CLASSES.items() if type(module) is network), None)
    if kind is None or not isinstance(module, Network):
        return None
    outputs = len(module.get_parameter(_MARKS[kind].outputs))
    categories = getattr(module, "categories", None)
    return ModelSettings(kind, outputs, module.base, module.pooling, categories, module.neighbours)


def _categories(settings: ModelSettings, tensors: Mapping[str, Tensor]) -> int:
    """Return how many columns of the first layer that sees the category are left for it."""
    if settings.kind == "dgcnn_partseg":
        return _columns(tensors.get("conv7.0.weight"))
    without = _shapes(replace(settings, categories=0))["convs1.weight"][1]
    return max(0, _columns(tensors["convs1.weight"]) - without)


def _columns(weight: Tensor | None) -> int:
    return weight.shape[1] if weight is not None and weight.dim() > 1 else 0


def _shapes(settings: ModelSettings) -> dict[str, torch.Size]:
    with torch.device("meta"):
        module = build(**asdict(settings))
    return {key: value.shape for key, value in module.state_dict().items()}
