"""Networks with one planted bug each: which module makes the first tensor that does not transform."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.awkward.case import CHANNELS, Case, Mix, gated, vectors
from tests.families.awkward.layouts import turn_image
from tests.families.awkward.structures import move
from tests.families.awkward.symmetries import GroupConvolution, Lift


@dataclass(frozen=True)
class Broken:
    """A case of which equivariance fails, and its repaired twin.

    Attributes:
        case: with the bug; it has no sites.
        owner: qualified name of the module whose op makes the first tensor that does not transform.
        repaired: the same module without the bug.
    """

    case: Case
    owner: str
    repaired: Case


class Stack(nn.Module):
    """Mix, something in between, mix: vectors in, vectors out."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = Mix(), between, Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return gated(x)


class Shifted(nn.Module):
    """A linear layer on channels; its bias points nowhere in particular."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, CHANNELS, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2)).transpose(1, 2)


class Softmax(nn.Module):
    """Attention over channels by lengths; over components it is a bug."""

    def __init__(self, over_components: bool) -> None:
        super().__init__()
        self.over_components = over_components

    def forward(self, x: Tensor) -> Tensor:
        scores = x if self.over_components else x.square().sum(-1, keepdim=True)
        return x * torch.softmax(scores, dim=-1 if self.over_components else 1)


class Filled(nn.Module):
    """A result that is filled in place, as every gate of e3nn does it, through slices or through views of views."""

    def __init__(self, bug: bool, views: bool = False) -> None:
        super().__init__()
        self.views, self.gate, self.rest = views, Gated(), nn.ReLU() if bug else Gated()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        if self.views:
            by_channel = out.view(x.shape).transpose(0, 1)
            by_channel.narrow(0, 0, 2).copy_(self.gate(x[:, :2]).transpose(0, 1))
            by_channel[2:][:1].copy_(self.gate(x[:, 2:3]).transpose(0, 1))
            by_channel[3:].copy_(self.rest(x[:, 3:]).transpose(0, 1))
        else:
            out[:, :2] = self.gate(x[:, :2])
            out[:, 2:] = self.rest(x[:, 2:])
        return out


class Joined(nn.Module):
    """Lengths, zeros and vectors in one row, as features of many degrees are at first."""

    def __init__(self, bug: bool) -> None:
        super().__init__()
        self.rest = nn.ReLU() if bug else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        lengths = x.norm(dim=-1)
        row = self.rest(torch.cat([lengths, lengths.new_zeros(len(x), 5), x.flatten(1)], dim=1))
        return row[:, 9:].unflatten(1, (CHANNELS, 3))


class Sampled(nn.Module):
    """A function of the values along a few directions, as grids and truncated series have them: equivariant nearly."""

    def __init__(self) -> None:
        super().__init__()
        directions = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("directions", directions / directions.norm(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.directions.T).tanh() @ self.directions / 13


class Cross(nn.Module):
    """A cross product is no vector under reflections; that of a cross product with a vector is one."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        other = x.roll(1, dims=1)
        product = torch.linalg.cross(x, other)
        return x + (torch.linalg.cross(product, other) if self.twice else product)


class Embed(nn.Module):
    """Vectors per point: differences to the other points; positions among them depend on the origin."""

    def __init__(self, absolute: bool) -> None:
        super().__init__()
        self.absolute = absolute

    def forward(self, positions: Tensor) -> Tensor:
        differences = positions[:, None] - positions[None]
        near = (differences * (-differences.square().sum(-1, keepdim=True)).exp()).sum(1)
        far = (differences * (-differences.square().sum(-1, keepdim=True) / 4).exp()).sum(1)
        return torch.stack([near, positions if self.absolute else far], dim=1)


class Cloud(nn.Module):
    def __init__(self, absolute: bool) -> None:
        super().__init__()
        self.embed, self.mix, self.last = Embed(absolute), Mix(2, CHANNELS), Mix(CHANNELS, 1)

    def forward(self, positions: Tensor) -> Tensor:
        return self.last(gated(self.mix(self.embed(positions))))[:, 0]


class Shrink(nn.Module):
    """Windows of three points fit a grid of nine; those of two leave out one edge only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, self.size)


class Image(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.lift, self.shrink, self.conv = Lift(), Shrink(size), GroupConvolution()

    def forward(self, x: Tensor) -> Tensor:
        h = self.shrink(self.lift(x).tanh())
        h = functional.pad(h, (0, 1 - h.shape[-1] % 2, 0, 1 - h.shape[-1] % 2))
        return self.conv(h).unflatten(1, (2, 4)).tanh().mean((2, 3, 4))


def _vectors(name: str, owner: str, trap: str, wrong: type[nn.Module], right: type[nn.Module], *more: bool) -> Broken:
    """Both twins of a stack of vectors under O(3); ``more`` is the flag that plants the bug."""
    flags = ((), ()) if not more else ((more[0],), (not more[0],))
    return Broken(
        Case(name, trap, lambda: Stack(wrong(*flags[0])), group="O3", act_output=lambda g, y: y @ g.T),
        owner,
        Case(name, "repaired", lambda: Stack(right(*flags[1])), group="O3", act_output=lambda g, y: y @ g.T),
    )


class Views(Filled):
    def __init__(self, bug: bool) -> None:
        super().__init__(bug, views=True)


def _cloud(absolute: bool, trap: str) -> Case:
    return Case(
        "absolute positions",
        trap,
        lambda: Cloud(absolute),
        group="E3",
        inputs=lambda: (vectors()[:, 0],),
        act=move,
        act_output=lambda g, y: y @ g[:3, :3].T,
    )


def _image(size: int, trap: str) -> Case:
    return Case(
        "pooling",
        trap,
        lambda: Image(size),
        group="C4",
        inputs=lambda: (torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64),),
        act=turn_image,
    )


BROKEN = (
    _vectors("ReLU on components", "between", "a pointwise function of vectors", nn.ReLU, Gated),
    _vectors("bias on vectors", "between.linear", "a bias in a layer of vectors", Shifted, Shifted, True),
    _vectors("softmax over components", "between", "the wrong axis", Softmax, Softmax, True),
    _vectors("filled in slices", "between.rest", "memory that is written through slices", Filled, Filled, True),
    _vectors("filled in views of views", "between.rest", "memory that is written through views", Views, Views, True),
    _vectors("in one row with zeros", "between.rest", "no representation of the row is seen", Joined, Joined, True),
    _vectors("sampled activation", "between", "a function of values along a few directions", Sampled, Gated),
    _vectors("forgotten parity", "between", "a pseudovector added to a vector", Cross, Cross, False),
    Broken(_cloud(True, "a translation changes features"), "embed", _cloud(False, "repaired")),
    Broken(_image(2, "windows that leave out an edge"), "shrink", _image(3, "repaired")),
)
