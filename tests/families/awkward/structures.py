"""More forwards: Python and foreign code on the way, graphs of points, state that a forward leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.awkward.case import CHANNELS, POINTS, Case, Mix, Trunk, gated, vectors


class Pair(nn.Module):
    """Two mixing maps; subclasses put between them what is awkward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Mix(), Mix()

    def between(self, x: Tensor) -> Tensor:
        return gated(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Fading(nn.Module):
    """Features of nodes along edges, times functions of the lengths that are trained; n nodes have 3 n edges."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.rate = (nn.Parameter(0.5 + torch.rand(CHANNELS, 1)) for _ in range(2))

    def forward(self, x: Tensor, lengths: Tensor, senders: Tensor) -> Tensor:
        return self.scale * torch.exp(-self.rate * lengths[:, None, None]) * x[senders]


class Messages(Pair):
    """What fades on its way is sent and summed, perhaps between layers."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        if not mixes:
            self.first = self.second = nn.Identity()
        self.fade = Fading()

    def between(self, x: Tensor) -> Tensor:
        receivers, senders = torch.randint(len(x), (2, 3 * len(x)), generator=torch.Generator().manual_seed(0))
        lengths = (x[receivers, 0] - x[senders, 0]).norm(dim=-1)
        return gated(x.index_add(0, receivers, self.fade(x, lengths, senders)))


class Ragged(Pair):
    """Graphs of different sizes, cut apart by a list of Python numbers."""

    def between(self, x: Tensor) -> Tensor:
        sizes = torch.tensor([3, POINTS - 3]).tolist()
        return torch.cat([gated(part - part.mean(0)) for part in x.split(sizes)])


class Scattered(Pair):
    """The number of graphs is read off the largest index."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("graph", torch.tensor([0, 0, 0, 1, 1, 1, 1]))

    def between(self, x: Tensor) -> Tensor:
        count = int(self.graph.max()) + 1
        sums = x.new_zeros(count, *x.shape[1:]).index_add(0, self.graph, x)
        return gated(x + sums[self.graph])


class ThroughNumpy(Pair):
    """Lengths leave torch; derivatives would miss them."""

    def between(self, x: Tensor) -> Tensor:
        lengths = (x.detach().numpy() ** 2).sum(-1, keepdims=True) ** 0.5
        return x * torch.from_numpy(lengths).tanh()


class Neighbours(Pair):
    """The nearest neighbours decide which rows meet."""

    def between(self, x: Tensor) -> Tensor:
        distances = torch.cdist(x.flatten(1), x.flatten(1))
        return gated(x + x[distances.topk(3, largest=False).indices].mean(1))


class Attention(Pair):
    """Fused attention: invariant queries and keys, components among the values."""

    def between(self, x: Tensor) -> Tensor:
        invariants, values = x.square().sum(-1), x.flatten(1)
        mixed = functional.scaled_dot_product_attention(invariants[None], invariants[None], values[None])
        return gated(mixed[0].unflatten(1, (CHANNELS, 3)))


class Matrix(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: Tensor, x: Tensor) -> Tensor:
        context.save_for_backward(weight, x)
        return weight @ x

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, x = context.saved_tensors
        return (gradient @ x.mT).sum(0), weight.mT @ gradient


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return Matrix.apply(self.weight, x)


class VariableKeywords(nn.Module):
    """Features inside ``**features`` have no place that a branch can address."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, **features: Tensor) -> Tensor:
        return gated(torch.einsum("oc,ncv->nov", self.weight, features["x"]))


class CallsByKeywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.hidden = Mix(), VariableKeywords()

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x=self.mix(x))


class Remembers(Pair):
    """What the last forward computed stays on the module, with its graph: then it cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        self.seen = gated(x)
        return self.seen


class Substituted(nn.Module):
    """A child is called with a matrix made from its own weight by its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.child = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        weight = {"weight": self.child.weight.tanh()}
        return torch.func.functional_call(self.child, weight, (gated(self.mix(x)),))


class EvalOnly(nn.Module):
    """A term that training does not have; it is linear, but no training step reaches its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.correction = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x)
        return h if self.training else h + self.correction(x)


class NormedLengths(Pair):
    """Batch normalisation of lengths: statistics of the batch in training mode, buffers that change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(CHANNELS)

    def between(self, x: Tensor) -> Tensor:
        lengths = x.norm(dim=-1)
        return x * (self.norm(lengths) / lengths)[..., None]


class Mutating(nn.Module):
    """Takes a dict, writes intermediate results into it, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        batch["x"] = gated(batch["x"])
        batch["h"] = self.mix(batch["x"])
        batch["energy"] = batch["h"].square().sum()
        return batch


class Positions(nn.Module):
    """Differences of positions are vectors, positions themselves move with the origin; forces out."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.last = Mix(2, CHANNELS), Mix(CHANNELS, 1)

    def forward(self, positions: Tensor) -> Tensor:
        differences = positions[:, None] - positions[None]
        weights = (-differences.square().sum(-1, keepdim=True)).exp()
        sums = torch.stack([(differences * weights).sum(1), (differences * weights**2).sum(1)], dim=1)
        return positions + self.last(gated(self.lift(sums)))[:, 0]


def move(g: Tensor, x: Tensor) -> Tensor:
    """Turn and shift points by homogeneous matrices."""
    return x @ g[:3, :3].T + g[:3, 3]


def _turn_dict(g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"x": batch["x"] @ g.T}


def _turn_vectors(g: Tensor, out: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value if key == "energy" else value @ g.T for key, value in out.items()}


def _pair(name: str, trap: str, middle: Callable[[], Pair], **more: Any) -> Case:
    return Case(name, trap, lambda: Trunk(middle()), {"middle.first.x", "middle.second.x"}, **more)


CASES = (
    _pair("ragged", "sizes from .tolist()", Ragged),
    _pair("scattered", "a shape that depends on the data", Scattered),
    _pair("through numpy", "values leave torch and come back", ThroughNumpy),
    _pair(
        "messages",
        "weights act along edges, of which there is any number",
        lambda: Messages(True),
        audit={"middle.fade.scale": "bypassed"},
        reason={"middle.fade.scale": "mixes the 7 entries along axis -3, of which it takes any number"},
    ),
    Case(
        "messages alone",
        "a branch would fit one graph only",
        lambda: Trunk(Messages(False)),
        error="takes any number.* used where a branch cannot act",
        twin=True,
    ),
    _pair("neighbours", "a choice of rows that depends on the data", Neighbours),
    _pair("attention", "components flattened among the values of fused attention", Attention),
    _pair("remembers", "a forward leaves a tensor on the module that forbids copying it", Remembers),
    _pair(
        "normed lengths",
        "training mode uses the batch and changes buffers",
        NormedLengths,
        audit={"middle.norm.weight": "not linear"},
    ),
    Case("custom function", "an op without a formula in torch", lambda: Trunk(CustomFunction()), {"middle.x"}),
    Case(
        "variable keywords",
        "features that arrive as **features",
        lambda: Trunk(CallsByKeywords()),
        {"middle.mix.x", "middle.hidden.weight"},
    ),
    Case(
        "substituted weight",
        "functional_call with a matrix made from the child's weight outside the child",
        lambda: Trunk(Substituted()),
        {"middle.mix.x"},
        reason={"middle.child.weight": "directly|supplied|cannot be relaxed here"},
    ),
    Case(
        "eval only",
        "a parameter that training never reads",
        lambda: Trunk(EvalOnly()),
        {"middle.mix.x"},
        audit={"middle.correction.weight": "unused"},
    ),
    Case(
        "mutated dict",
        "the batch is written to and returned",
        Mutating,
        {"mix.x"},
        inputs=lambda: ({"x": vectors()},),
        act=_turn_dict,
        act_output=_turn_vectors,
    ),
    Case(
        "positions",
        "translations act on the inputs and the outputs, not on features",
        Positions,
        {"lift.x", "last.x"},
        group="E3",
        inputs=lambda: (vectors()[:, 0],),
        act=move,
        act_output=lambda g, y: move(g, y),
    ),
)
