"""Features that are 0, or all alike, on every batch, and weights that meet constants of the forward only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.support.e3nn_compat import import_e3nn
from tests.families.awkward.case import CHANNELS, Case, Mix
from tests.families.awkward.layouts import turn_image
from tests.families.awkward.symmetries import GroupNetwork, clouds

HIDDEN = "4x0e+4x1o"


def edges(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of different points: source, target, and their difference after its length."""
    source, target = (~torch.eye(len(points), dtype=torch.bool)).nonzero().T
    difference = points[source] - points[target]
    return source, target, torch.cat([difference.norm(dim=-1, keepdim=True).tanh(), difference], -1)


class Embedded(nn.Module):
    """Invariants embedded among vectors, all 0, which messages fill."""

    def __init__(self, reader: Callable[[], nn.Module]) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.embed, self.reader = o3.Linear("4x0e", HIDDEN), reader()
        self.last = o3.Linear(HIDDEN, "1x1o")

    def forward(self, kinds: Tensor, points: Tensor) -> Tensor:
        h = self.embed(kinds)
        source, target, difference = edges(points)
        return self.last(torch.zeros_like(h).index_add(0, target, self.reader(h[source], difference)))


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.mix, self.conv = o3.Linear(HIDDEN, HIDDEN), o3.FullyConnectedTensorProduct(HIDDEN, "1x0e+1x1o", HIDDEN)

    def forward(self, x: Tensor, difference: Tensor) -> Tensor:
        return self.conv(self.mix(x), difference)


class ReadsOtherwise(nn.Module):
    """Takes the zeros for vectors in the other layout, components first."""

    def forward(self, x: Tensor, difference: Tensor) -> Tensor:
        scalars, vectors, r = x[:, :4], x[:, 4:].unflatten(-1, (3, 4)).mT, difference[:, None, 1:]
        return torch.cat([scalars * (1 + (vectors * r).sum(-1)), (scalars[..., None] * r + vectors).flatten(1)], -1)


class ReadsInvariants(nn.Module):
    """Reads what is not 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = import_e3nn().Linear(HIDDEN, "4x0e")

    def forward(self, x: Tensor, difference: Tensor) -> Tensor:
        scalars = self.mix(x)
        return torch.cat([scalars, (scalars[..., None] * difference[:, None, 1:]).flatten(1)], -1)


class DegreeTwo(nn.Module):
    """Degree two is filled by the second layer, while the first has filled the vectors."""

    def __init__(self) -> None:
        super().__init__()
        o3, hidden = import_e3nn(), "2x0e+2x1o+1x2e"
        self.first, self.second = (
            o3.FullyConnectedTensorProduct(irreps, "1x0e+1x1o", hidden) for irreps in ("4x0e", hidden)
        )
        self.last = o3.Linear(hidden, "1x1o")

    def forward(self, kinds: Tensor, points: Tensor) -> Tensor:
        source, target, difference = edges(points)
        h = kinds
        for layer in (self.first, self.second):
            messages = layer(h[source], difference)
            h = messages.new_zeros(len(points), messages.shape[1]).index_add(0, target, messages)
        return self.last(h)


class FlatLift(nn.Module):
    """A kernel of one point looks alike in four orientations: all channels of a stack are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight.repeat_interleave(4, 0))


class MeetsConstants(nn.Module):
    """States made in the forward: zeros that weights map to zeros, ones that they make a bias of."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mix = Mix() if mixes else nn.Identity()
        self.hidden, self.bias = (nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(2))
        self.back, self.scale = Mix(), nn.Parameter(torch.randn(CHANNELS))
        self.steps = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x)
        state, vectors = torch.zeros(len(x), CHANNELS), torch.zeros_like(x)
        h = h + self.back(vectors) + self.scale[:, None] * vectors
        shift = self.bias(torch.ones_like(x[..., 0])).tanh() + self.hidden(state)
        return h * (h.square().sum(-1) + shift)[..., None] * (100 * self.steps).round()[:, None]


def _cloud(name: str, trap: str, build: Callable[[], nn.Module], sites: set[str], **more: Any) -> Case:
    return Case(
        name,
        trap,
        build,
        sites,
        group="O3",
        inputs=lambda: (clouds(5, 4), clouds(5, 3)),
        act=lambda g, kinds, points: (kinds, points @ g.T),
        act_output=lambda g, y: y @ g.T,
        **more,
    )


CASES = (
    _cloud(
        "embedded invariants",
        "vectors that are 0 on every batch",
        lambda: Embedded(Reads),
        {"embed.features", "reader.mix.features", "reader.conv.x", "last.features"},
    ),
    _cloud(
        "zeros read otherwise",
        "zeros that are read in another layout than any features have",
        lambda: Embedded(ReadsOtherwise),
        {"last.features"},
        reason={"embed.weight": "partly 0 .* but what uses it takes it for a tensor of some other type"},
        twin=True,
    ),
    _cloud(
        "zeros that nothing reads",
        "zeros that no weight reads",
        lambda: Embedded(ReadsInvariants),
        {"last.features"},
        reason={"reader.mix.weight": "and no weight reads 12 of its 16 features"},
    ),
    _cloud(
        "degree two from the second layer on",
        "zeros beside features that transform",
        DegreeTwo,
        {"first.x", "second.x", "last.features"},
    ),
    Case(
        "channels that are equal",
        "stacks of four in which only invariants are not 0",
        lambda: GroupNetwork(FlatLift()),
        {"lift.x", "conv.x"},
        group="C4",
        inputs=lambda: (clouds(2, 1, 7, 7),),
        act=turn_image,
    ),
    Case(
        "constants of the forward",
        "weights that meet zeros and ones only",
        lambda: MeetsConstants(mixes=True),
        {"mix.x"},
        act_output=lambda g, y: y @ g.T,
        audit={"bias.weight": "not linear", "steps": "not linear"},
        reason=dict.fromkeys(
            ("hidden.weight", "back.weight", "scale"), "perturbed, it leaves every output as it is, to the bit"
        ),
    ),
    Case(
        "nothing but constants",
        "no weight meets a feature",
        lambda: MeetsConstants(mixes=False),
        act_output=lambda g, y: y @ g.T,
        error="nothing to relax .*perturbed, it leaves every output as it is",
    ),
)
