"""Relaxed convolutions of the group of scales on images (Wang, Walters and Yu, ICML 2022), by dilated filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon_adapters.zoo.relaxed_convolutions.mixture import MixtureConv2d, banks_of, same_shapes, through

ScaleFields = Literal["plane", "scales"]

FACTOR = 2
"""Ratio of neighbouring scales: filters of whole dilations stay on the grid."""


class RelaxedScaleConv2d(MixtureConv2d):
    """Lifting, group or projecting convolution whose filters depend on the scale by a few mixture weights.

    The filter of scale s is a mixture of banks, dilated by ``2^s``: ``psi_s(u) = sum_l w_l(s) psi_l(u / 2^s)``. With
    all ``w_l`` constant, shrinking the input by two, ``x(2 u)``, shrinks the features and moves them one scale down,
    exactly so except where this leaves the range of scales or the image. A field on scales has one channel per scale,
    neighbours in memory. There is no bias, so that velocities, which shrink too, stay velocities.

    Attributes:
        weights: the filter banks psi_l, shape (banks, out, in, reach, k, k); scale s of the output sees the scales
            s, ..., s + reach - 1 of the input.
        combination_weights: w_l(s), shape (scales, banks).
    """

    spread: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 3,
        *,
        fields_in: ScaleFields = "scales",
        fields_out: ScaleFields = "scales",
        scales: int = 3,
        reach: int = 1,
        filter_banks: int = 1,
    ) -> None:
        both = fields_in == fields_out == "scales"
        if "scales" not in (fields_in, fields_out) or kernel_size % 2 == 0 or not 1 <= reach <= (scales if both else 1):
            raise ValueError(
                f"expected fields on scales on one side, an odd kernel, and a reach of 1 or, between fields on scales, "
                f"up to {scales}, got {fields_in} to {fields_out}, {kernel_size} and {reach}: correct them"
            )
        summed = channels_in * (reach if fields_out == "scales" else scales)
        super().__init__((filter_banks, channels_out, channels_in, reach, kernel_size, kernel_size), scales, summed)
        self.fields_in, self.fields_out, self.scales, self.reach = fields_in, fields_out, scales, reach
        self.channels_in, self.channels_out, self.kernel_size = channels_in, channels_out, kernel_size
        self.register_buffer("spread", _spread(kernel_size, scales), persistent=False)

    @property
    def support(self) -> int:
        """Side of the kernel that holds the most dilated filter."""
        return len(self.spread[0])

    def components(self, fields: ScaleFields) -> int:
        """Return how many channels one field has."""
        return 1 if fields == "plane" else self.scales

    def kernel(self) -> Tensor:
        """Return the kernel of the plain convolution that this layer is: shape (d_out, d_in, support, support)."""
        filters = torch.einsum("spa,soijab,sqb->soijpq", self.spread, self.mixed(), self.spread)
        if self.fields_in == "plane":
            return filters.transpose(0, 1).flatten(0, 1).flatten(1, 2)
        if self.fields_out == "plane":
            return filters.movedim(0, 2).flatten(1, 3)
        # Towards scales above the last one there is nothing: negative padding cuts off.
        placed = [
            functional.pad(each, (0, 0, 0, 0, scale, self.scales - scale - self.reach))
            for scale, each in enumerate(filters)
        ]
        return torch.stack(placed, dim=1).flatten(0, 1).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (b, d_out, h, w) of features (b, d_in, h, w)."""
        return functional.conv2d(x, self.kernel(), padding=self.support // 2)

    def extra_repr(self) -> str:
        """Show both sides."""
        return (
            f"{self.channels_in} {self.fields_in} -> {self.channels_out} {self.fields_out}, {self.scales} scales, "
            f"{self.kernel_size} x {self.kernel_size}, {len(self.weights)} banks"
        )


def _spread(kernel_size: int, scales: int) -> Tensor:
    """Return where dilation puts the points of a filter along one axis: shape (scales, support, k)."""
    support = (kernel_size - 1) * FACTOR ** (scales - 1) + 1
    result = torch.zeros(scales, support, kernel_size)
    for scale in range(scales):
        for point in range(kernel_size):
            result[scale, support // 2 + FACTOR**scale * (point - kernel_size // 2), point] = 1
    return result


class RelaxedScaleNet(nn.Module):
    """From vector fields, such as a few past frames of a flow, to vector fields, through fields on scales.

    Attributes:
        sconv: the layers; ReLU acts between them.
    """

    def __init__(
        self,
        frames_in: int,
        frames_out: int = 1,
        hidden: int = 8,
        layers: int = 5,
        kernel_size: int = 3,
        scales: int = 3,
        filter_banks: int = 2,
        reach: int = 1,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"expected at least 2 layers, one to lift and one to project, got {layers}: give more")
        lift = RelaxedScaleConv2d(
            2 * frames_in, hidden, kernel_size, fields_in="plane", scales=scales, filter_banks=filter_banks
        )
        inner = [
            RelaxedScaleConv2d(hidden, hidden, kernel_size, scales=scales, reach=reach, filter_banks=filter_banks)
            for _ in range(layers - 2)
        ]
        project = RelaxedScaleConv2d(
            hidden, 2 * frames_out, kernel_size, fields_out="plane", scales=scales, filter_banks=filter_banks
        )
        self.sconv = nn.ModuleList([lift, *inner, project])

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, 2 frames_out, h, w) of (b, 2 frames_in, h, w)."""
        return through(self.sconv, x)


def scale_net(tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """Build the :class:`RelaxedScaleNet` of a state dict; None if it is that of another model."""
    banks = banks_of(tensors, "sconv")
    if not banks:
        return None
    first, last, scales = banks[0], banks[-1], len(tensors["sconv.0.combination_weights"])
    frames_in, frames_out = first.shape[2] // 2, last.shape[1] // 2
    sizes = (first.shape[1], len(banks), first.shape[-1], scales, len(first))
    net = RelaxedScaleNet(frames_in, frames_out, *sizes, reach=banks[1].shape[3])
    return net if same_shapes(net, tensors) else None
