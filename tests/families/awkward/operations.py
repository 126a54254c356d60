"""More ops: axes in other orders, several types at once, constraints on weights, features that are 0."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.families.awkward.case import CHANNELS, POINTS, Case, Mix, Trunk, gated, vectors
from tests.families.awkward.symmetries import clouds


class Gvp(nn.Module):
    """Scalars and vectors as a tuple, one linear layer per type, lengths of vectors among the scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.scalars = nn.Linear(2 * CHANNELS, CHANNELS)
        self.outer = nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        s, v = features
        h = self.inner(v.transpose(1, 2))
        s = torch.relu(self.scalars(torch.cat([s, h.norm(dim=1)], dim=1)))
        return s, self.outer(h).transpose(1, 2) * torch.sigmoid(s)[..., None]


class GvpNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Gvp()

    def forward(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.layer(features)


class TupleMix(nn.Module):
    """Linear in both members of a plain tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)
        self.vectors = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return features[0] @ self.scalars.T, self.vectors @ features[1]


class TupleNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TupleMix(), TupleMix()

    def forward(self, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        s, v = self.first(features)
        return self.second((s.tanh(), gated(v)))


class PointsLast(nn.Module):
    """(b, c, 3, n): a linear layer between two transposes, and a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x.transpose(1, -1)).transpose(1, -1)
        h = self.conv(h * torch.tanh(h.square().sum(2, keepdim=True)))
        return h.mean(-1)


class Merged(nn.Module):
    """(b, c, n * 3): points and components on one axis, over which a convolution slides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.flatten(2)).unflatten(2, (-1, 3))
        return gated(h).mean(2)


class Spectral(nn.Module):
    """The weight is divided by its largest singular value, estimated anew in each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = parametrizations.spectral_norm(nn.Linear(CHANNELS, CHANNELS, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2)).transpose(1, 2)


class DeadGate(nn.Module):
    """A gate that is 0 on all samples: what comes before has no influence, what comes after sees only zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.before, self.after = Mix(), Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        return self.mix(x) + self.after(h * torch.relu(-1.0 - h.square().sum(-1, keepdim=True)))


class FlatWeights(nn.Module):
    """All weights of 4x0e+3x1o in one vector, of which each path reads a view."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16 + 9) / 2)

    def forward(self, features: Tensor) -> Tensor:
        scalars, turned = features[:, :4], features[:, 4:].unflatten(1, (3, 3))
        s = scalars @ self.weight[:16].view(4, 4)
        v = torch.einsum("uw,nui->nwi", self.weight[16:].view(3, 3), turned)
        return torch.cat([s, v.flatten(1)], dim=1)


class FlatNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = FlatWeights()

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return torch.cat([h[:, :4].tanh(), h[:, 4:] * torch.sigmoid(h[:, :1])], dim=1)


class SinglePrecisionConstant(nn.Module):
    """A float32 tensor that is no buffer: ``double()`` does not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()
        self.metric = torch.eye(3, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x @ self.metric)


def _typed() -> tuple[tuple[Tensor, Tensor]]:
    x = vectors()
    return ((x.square().sum(-1), x),)


def _turn_typed(g: Tensor, features: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return features[0], features[1] @ g.T


def _turn_flat(g: Tensor, x: Tensor) -> Tensor:
    return torch.cat([x[:, :4], (x[:, 4:].unflatten(1, (3, 3)) @ g.T).flatten(1)], dim=1)


CASES = (
    Case(
        "scalars and vectors",
        "two types in a tuple, a linear layer for each, lengths among the scalars",
        GvpNetwork,
        {"layer.inner.input", "layer.outer.input"},
        inputs=_typed,
        act=_turn_typed,
        act_output=_turn_typed,
        audit={"layer.scalars.weight": "invariant"},
    ),
    Case(
        "tuple of types",
        "one layer with a linear map per member of a tuple",
        TupleNetwork,
        {"first.features.1", "second.features.1"},
        inputs=_typed,
        act=_turn_typed,
        act_output=_turn_typed,
    ),
    Case(
        "points last",
        "rows on both sides of the components",
        PointsLast,
        {"linear.input", "conv.input"},
        inputs=lambda: (clouds(5, CHANNELS, 3, POINTS),),
        act=lambda g, x: torch.einsum("ij,bcjn->bcin", g, x),
        act_output=lambda g, y: y @ g.T,
    ),
    Case(
        "merged axes",
        "points and components on the axis of a convolution",
        Merged,
        {"conv.input"},
        inputs=lambda: (clouds(5, CHANNELS, POINTS, 3),),
        act_output=lambda g, y: y @ g.T,
    ),
    Case("spectral norm", "a weight that each training step rescales", lambda: Trunk(Spectral()), {"middle.mix.input"}),
    Case(
        "dead gate",
        "a path that carries nothing on the sample batch",
        lambda: Trunk(DeadGate()),
        {"middle.mix.x"},
        reason={
            "middle.before.weight": "no gradient of the output",
            "middle.after.weight": "perturbed, it leaves every output as it is",
        },
    ),
    Case(
        "flat weights",
        "one parameter that holds the matrices of all paths",
        FlatNetwork,
        {"linear.features"},
        inputs=lambda: (clouds(9, 13),),
        act=_turn_flat,
        act_output=_turn_flat,
    ),
    Case(
        "float32 constant",
        "a tensor that double() does not reach",
        lambda: Trunk(SinglePrecisionConstant()).float(),
        inputs=lambda: (vectors().float(),),
        act=lambda g, x: x @ g.T.to(x),
        sites={"middle.mix.x"},
        sound=False,
    ),
)
