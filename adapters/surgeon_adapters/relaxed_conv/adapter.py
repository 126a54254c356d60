"""Adapter for relaxed convolutions: branches beside layers whose own filters break the symmetry a little already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from surgeon.groups import Group
from surgeon.registry import BaseAdapter, Proposal, Refusal
from surgeon.representations import Representation, axes, regular, trivial
from surgeon.types import Convolution
from surgeon_adapters.relaxed_conv.rotation import ORDERS, Fields, RelaxedRotationConv2d, rotation_net

CHANNEL = (-3,)
FRAME = ((0, 1), (1, 0))
"""Rows of an image run along y, columns along x."""


class RelaxedConvAdapter(BaseAdapter):
    """Annotations of relaxed rotation convolutions."""

    name = "relaxed-conv"
    groups = tuple(f"C{order}" for order in ORDERS)

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the kinds of fields; None for a module of another family."""
        if not isinstance(module, RelaxedRotationConv2d):
            return None
        if group.name != f"C{module.order}":
            return Refusal(f"its filters are relaxed over C{module.order}, not over {group.name}", "unexplained")
        if not module.weights.requires_grad:
            return Refusal("its weights are frozen", "frozen")
        convolution = _convolution(module.kernel_size, module.kernel_size // 2)
        return Proposal(
            "x",
            "linear" if convolution is None else "convolution",
            _fields(group, module.fields_in, module.channels_in),
            _fields(group, module.fields_out, module.channels_out),
            axes_in=CHANNEL,
            axes_out=CHANNEL,
            convolution=convolution,
            symmetrised=module.symmetrised(),
        )

    def fold_data(self, module: nn.Module, calls: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, str]:
        """Nothing folds: filters are mixtures of banks, and W would change what they relax."""
        return None, "not foldable: its filters are mixtures of banks"

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Build the network whose keys and shapes these are."""
        return rotation_net(tensors)


def _fields(group: Group, fields: Fields, count: int) -> Representation:
    match fields:
        case "regular":
            return regular(group, count)
        case "vector":
            return axes(group, "c v", {"c": count})
        case "trivial":
            return trivial(group, count)


def _convolution(size: int, padding: int) -> Convolution | None:
    """Return how a kernel of stride 1 moves; None for one of a single point."""
    if size == 1:
        return None
    return Convolution((size, size), (1, 1), (padding, padding), (1, 1), "zeros", FRAME)


adapter = RelaxedConvAdapter()
