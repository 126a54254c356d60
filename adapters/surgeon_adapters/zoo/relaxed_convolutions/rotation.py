"""Relaxed convolutions of the cyclic groups C2 and C4 on images (Wang, Walters and Yu, ICML 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon_adapters.zoo.relaxed_convolutions.mixture import MixtureConv2d, banks_of, same_shapes, through

Fields = Literal["trivial", "vector", "regular"]

ORDERS = (2, 4)
"""Orders of cyclic groups that map a square grid to itself."""


class RelaxedRotationConv2d(MixtureConv2d):
    """Lifting, group or projecting convolution whose filters depend on the rotation by a few mixture weights.

    The paper's relaxed group convolution has filters ``psi(g, h) = sum_l w_l(g) psi_l(g^-1 h)``: with all ``w_l``
    constant over the group the layer is exactly equivariant, otherwise approximately. One side has to be fields on the
    group ("regular"); from or to fields on the plane, filters are lifted or projected. Rows of an image run along y,
    columns along x.

    Attributes:
        weights: the filter banks psi_l, shape (banks, out, in, f, k, k) towards regular fields, where f is the number
            of components of a field of the input; (banks, out, f, in, k, k) from regular to other fields.
        combination_weights: w_l(g), shape (order, banks).
        bias: one per field, shape (out,); none for vector fields, to which nothing constant can be added.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 3,
        *,
        fields_in: Fields = "regular",
        fields_out: Fields = "regular",
        order: int = 4,
        filter_banks: int = 1,
    ) -> None:
        if "regular" not in (fields_in, fields_out) or order not in ORDERS or kernel_size % 2 == 0:
            raise ValueError(
                f"expected regular fields on one side, an order out of {ORDERS} and an odd kernel, got {fields_in} to "
                f"{fields_out}, {order} and {kernel_size}: correct them"
            )
        size_in, size_out = (_components(fields, order) for fields in (fields_in, fields_out))
        lifts = fields_out == "regular"
        inner = (channels_out, channels_in, size_in) if lifts else (channels_out, size_out, channels_in)
        super().__init__((filter_banks, *inner, kernel_size, kernel_size), order, channels_in * size_in)
        self.fields_in, self.fields_out, self.order, self.lifts = fields_in, fields_out, order, lifts
        self.channels_in, self.channels_out, self.kernel_size = channels_in, channels_out, kernel_size
        self.bias = None if fields_out == "vector" else nn.Parameter(torch.zeros(channels_out))

    def kernel(self) -> Tensor:
        """Return the kernel of the plain convolution that this layer is: shape (d_out, d_in, k, k)."""
        moved = self.fields_in if self.lifts else self.fields_out
        axis = 2 if self.lifts else 1
        orbit = [_turned(psi, turns, self.order, moved, axis) for turns, psi in enumerate(self.mixed())]
        stacked = torch.stack(orbit, dim=1 if self.lifts else 3)
        return stacked.flatten(0, 1).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (b, d_out, h, w) of features (b, d_in, h, w); the components of a field are neighbours."""
        bias = None if self.bias is None else self.bias.repeat_interleave(_components(self.fields_out, self.order))
        return functional.conv2d(x, self.kernel(), bias, padding=self.kernel_size // 2)

    def extra_repr(self) -> str:
        """Show both sides."""
        return (
            f"{self.channels_in} {self.fields_in} -> {self.channels_out} {self.fields_out}, C{self.order}, "
            f"{self.kernel_size} x {self.kernel_size}, {len(self.weights)} banks"
        )


def _components(fields: Fields, order: int) -> int:
    """Return how many channels one field has."""
    return {"trivial": 1, "vector": 2, "regular": order}[fields]


def _turned(kernel: Tensor, turns: int, order: int, fields: Fields, axis: int) -> Tensor:
    """Return ``rho(g) kernel(g^-1 u)`` for the element number ``turns``, rho acting on one axis."""
    quarters = turns * 4 // order
    kernel = torch.rot90(kernel, -quarters, (-2, -1))  # from x towards y, that is from columns towards rows
    if fields == "regular":
        return kernel.roll(turns, axis)
    if fields == "vector":
        x, y = kernel.unbind(axis)
        return torch.stack(((x, y), (-y, x), (-x, -y), (y, -x))[quarters], axis)
    return kernel


class RelaxedRotationNet(nn.Module):
    """From vector fields, such as a few past frames of a flow, to vector fields, through regular fields.

    Attributes:
        rconv: the layers; ReLU acts between them.
    """

    def __init__(
        self,
        frames_in: int,
        frames_out: int = 1,
        hidden: int = 8,
        layers: int = 5,
        kernel_size: int = 3,
        order: int = 4,
        filter_banks: int = 2,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"expected at least 2 layers, one to lift and one to project, got {layers}: give more")
        widths = [frames_in, *[hidden] * (layers - 1), frames_out]
        fields: list[Fields] = ["vector", *["regular"] * (layers - 1), "vector"]  # type: ignore[list-item]
        self.rconv = nn.ModuleList(
            RelaxedRotationConv2d(
                widths[i],
                widths[i + 1],
                kernel_size,
                fields_in=fields[i],
                fields_out=fields[i + 1],
                order=order,
                filter_banks=filter_banks,
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, 2 frames_out, h, w) of (b, 2 frames_in, h, w); (x, y) of one frame are neighbours."""
        return through(self.rconv, x)


def rotation_net(tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """Build the :class:`RelaxedRotationNet` of a state dict; None if it is that of another model."""
    banks = banks_of(tensors, "rconv")
    if not banks or len(tensors["rconv.0.combination_weights"]) not in ORDERS:
        return None
    first, last, order = banks[0], banks[-1], len(tensors["rconv.0.combination_weights"])
    net = RelaxedRotationNet(
        first.shape[2], last.shape[1], first.shape[1], len(banks), first.shape[-1], order, len(first)
    )
    return net if same_shapes(net, tensors) else None
