"""Where the component axis is, and how features are laid out; other groups; raw convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from tests.families.awkward.case import CHANNELS, Case, gated, vectors

MINKOWSKI = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)


class ChannelLast(nn.Module):
    """(n, 3, c): an ``nn.Linear`` on channels commutes with rotations whatever its weight is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * torch.tanh(h.square().sum(1, keepdim=True))).square().sum(1)


class Tensors(nn.Module):
    """Rank-2 tensors (n, 3, 3, c)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.einsum("nci,ncj->nijc", x, x)).square().sum((1, 2))


class Spherical(nn.Module):
    """Components 1 + 3 + 5 on one axis, (n, 9, c), a matrix per degree."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleList([nn.Linear(CHANNELS, CHANNELS, bias=degree == 0) for degree in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split([1, 3, 5], dim=1)
        return torch.cat([mix(part).square().sum(1) for mix, part in zip(self.mix, parts, strict=True)], dim=1)


class Flat(nn.Module):
    """2x0e+3x1o on one flat axis; ``ir_mul`` puts components first."""

    def __init__(self, ir_mul: bool) -> None:
        super().__init__()
        self.ir_mul = ir_mul
        self.mix = FlatMix(ir_mul)

    def forward(self, x: Tensor) -> Tensor:
        shape = (3, 3)
        out = self.mix(x)
        return torch.cat([out[:, :2], out[:, 2:].unflatten(1, shape).square().sum(1 if self.ir_mul else 2)], dim=1)


class FlatMix(nn.Module):
    def __init__(self, ir_mul: bool) -> None:
        super().__init__()
        self.equation = "oc,nvc->nvo" if ir_mul else "oc,ncv->nov"
        self.scalars = nn.Parameter(torch.randn(2, 2))
        self.vectors = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.einsum(self.equation, self.vectors, x[:, 2:].unflatten(1, (3, 3))).flatten(1)
        return torch.cat([x[:, :2] @ self.scalars.T, turned], dim=1)


class Pointwise(nn.Module):
    """A convolution with kernel size 1 is a linear map of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(CHANNELS, CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(gated(x)).square().sum(-1)


class InsideForward(nn.Module):
    """Raw parameters between non-linearities, all in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.second = nn.Parameter(torch.randn(CHANNELS, CHANNELS))
        self.head = nn.Parameter(torch.randn(CHANNELS, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = gated(torch.einsum("oc,ncv->nov", self.first, x))
        h = gated(self.second @ h)
        return h.square().sum(-1) @ self.head


class Untraceable(InsideForward):
    def forward(self, x: Tensor) -> Tensor:
        if x.norm() > 0:
            x = gated(x)
        return super().forward(x)


class OptionalArgument(InsideForward):
    """Traced with an argument where eager has none: torch.fx takes the other branch without saying so."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        return x.square().sum(-1) * mask


class Lorentz(nn.Module):
    """Four-vectors (n, c, 4) under SO(1, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(2))
        self.head = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.transpose(1, 2)).transpose(1, 2)
        h = h * torch.tanh((h * h * MINKOWSKI).sum(-1, keepdim=True))
        h = self.second(h.transpose(1, 2)).transpose(1, 2)
        return self.head((h * h * MINKOWSKI).sum(-1))


class Planar(nn.Module):
    """Vectors of the plane (n, c, 2) under SO(2)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(gated(x).transpose(1, 2)).square().sum(1)


class TurnedKernels(nn.Module):
    """A C4 network of raw weights: kernels are stacks of one weight in four orientations."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Parameter(torch.randn(3, 1, 3, 3))
        self.group = nn.Parameter(torch.randn(2, 3, 4, 3, 3) / 4)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        lift = torch.stack([torch.rot90(self.lift, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        h = functional.conv2d(x, lift, padding=1).relu()
        turned = [torch.rot90(self.group.roll(k, 2), k, (3, 4)) for k in range(4)]
        h = functional.conv2d(h, torch.stack(turned, 1).flatten(0, 1).flatten(1, 2), padding=1)
        return self.head(h.unflatten(1, (2, 4)).relu().mean((2, 3, 4)))


def turn_image(g: Tensor, x: Tensor) -> Tensor:
    """Turn images (b, c, h, w) by quarters."""
    quarters = round(float(torch.atan2(g[1, 0], g[0, 0])) / (math.pi / 2)) % 4
    return torch.rot90(x, quarters, (2, 3))


def _turn_spherical(g: Tensor, x: Tensor) -> Tensor:
    rho = irreps(parse_group("SO3"), "0e+1o+2e")
    return rho.action(g).apply(x.movedim(1, -1))[0].movedim(-1, 1)


def _turn_flat(ir_mul: bool, g: Tensor, x: Tensor) -> Tensor:
    turned = x[:, 2:].unflatten(1, (3, 3))
    turned = torch.einsum("ij,njc->nic", g, turned) if ir_mul else turned @ g.T
    return torch.cat([x[:, :2], turned.flatten(1)], dim=1)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _channel_first(g: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,njc->nic", g, x)


CASES = (
    Case(
        "channel last",
        "W on channels alone relaxes nothing",
        ChannelLast,
        {"first.input", "second.input"},
        inputs=lambda: (_random(7, 3, 4),),
        act=_channel_first,
    ),
    Case("rank two", "two component axes", Tensors, {"mix.input"}, inputs=lambda: (vectors(),)),
    Case(
        "spherical channels",
        "1 + 3 + 5 components on one axis",
        Spherical,
        {"mix.1.input", "mix.2.input"},
        inputs=lambda: (_random(6, 9, 4),),
        act=_turn_spherical,
    ),
    Case(
        "mul_ir",
        "flat axis, copies first",
        lambda: Flat(False),
        {"mix.x"},
        inputs=lambda: (_random(9, 11),),
        act=lambda g, x: _turn_flat(False, g, x),
    ),
    Case(
        "ir_mul",
        "flat axis, components first",
        lambda: Flat(True),
        {"mix.x"},
        inputs=lambda: (_random(9, 11),),
        act=lambda g, x: _turn_flat(True, g, x),
    ),
    Case("pointwise convolution", "Conv1d with one point over components", Pointwise, {"mix.input"}),
    Case(
        "inside a forward",
        "raw parameters between non-linearities",
        InsideForward,
        {"first", "second"},
        audit={"head": "invariant"},
    ),
    Case(
        "untraceable",
        "raw parameters after a branch on data",
        Untraceable,
        {"first", "second"},
        audit={"head": "invariant"},
    ),
    Case(
        "optional argument",
        "the traced form takes another branch",
        OptionalArgument,
        {"first", "second"},
        audit={"head": "invariant"},
    ),
    Case(
        "Lorentz",
        "a non-compact group",
        Lorentz,
        {"first.input", "second.input"},
        group="SO13",
        inputs=lambda: (_random(6, 4, 4),),
    ),
    Case("planar", "complex type irreps", Planar, {"mix.input"}, group="SO2", inputs=lambda: (_random(6, 4, 2),)),
    Case(
        "turned kernels",
        "raw C4 kernels on images",
        TurnedKernels,
        {"lift", "group"},
        group="C4",
        inputs=lambda: (_random(2, 1, 7, 7),),
        act=turn_image,
        audit={"head.weight": "invariant"},
    ),
)
