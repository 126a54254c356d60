"""Forwards that symbolic tracing cannot follow, and that hide what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.families.awkward.case import CHANNELS, Case, Mix, Trunk, gated, vectors


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm().item()
        for _ in range(1 + int(size > 0) + len(x.shape)):
            x = gated(x)
        return self.mix(x) if size > 1e-3 else x


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(gated(self.mix(x)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Mix()
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(gated(self.first(x)))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        y = self.mix(x)
        y += x
        return y


class Forces(nn.Module):
    """Forces as derivatives inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = Mix(), nn.Linear(CHANNELS, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.last(gated(self.mix(x)).square().sum(-1)).sum()
            (gradient,) = torch.autograd.grad(energy, x, create_graph=self.training)
        return {"energy": energy, "forces": -gradient}


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(gated(self.first(x)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


class State(NamedTuple):
    scalars: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class Batch:
    features: State
    label: str = "water"


class TupleMix(nn.Module):
    """Vectors and scalars in a named tuple; only the vectors are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, state: State) -> State:
        return State(state.scalars, torch.einsum("oc,ncv->nov", self.weight, state.vectors))


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = TupleMix()
        self.head = nn.Linear(2 * CHANNELS, 2)

    def forward(self, batch: Batch) -> dict[str, Any]:
        state = self.mix(batch.features)
        invariants = torch.cat([state.scalars, state.vectors.square().sum(-1)], dim=1)
        return {"logits": [self.head(invariants)], "label": batch.label}


class DegreeMix(nn.Module):
    """Features in a dict by degree, one matrix per degree, as SE(3)-transformers do it."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ("0", "1")
        self.weights = nn.ParameterDict({key: nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2) for key in sizes})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.einsum("oc,ncv->nov", self.weights[key], value) for key, value in features.items()}


class Degrees(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = DegreeMix()

    def forward(self, x: Tensor) -> Tensor:
        out = self.mix({"0": x.square().sum(-1, keepdim=True), "1": gated(x)})
        return torch.cat([out["0"][..., 0], out["1"].square().sum(-1)], dim=1)


class Hidden(nn.Module):
    """Only keyword arguments, one of them optional."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x=gated(x))


class Both(nn.Module):
    """Linear in each of two feature arguments, with weights for both."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)
        self.b = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("oc,ncv->nov", self.a, x) + torch.einsum("oc,ncv->nov", self.b, y)


class TwoArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.both = Mix(), Both()

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x)
        return self.both(h, gated(h))


class Product(nn.Module):
    """Bilinear: vectors times invariant weights of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3) / 2)

    def forward(self, x: Tensor, edge: Tensor) -> Tensor:
        return torch.einsum("oce,ncv,ne->nov", self.weight, x, edge)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.product = Mix(), Product()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.mix(x), x.square().sum(-1)[:, :3])


class ReadsMode(nn.Module):
    """Dropout in training mode: random there, deterministic in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.dropout = Mix(), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x * self.dropout(torch.ones_like(x[..., :1])))


def _batch() -> tuple[Batch]:
    x = vectors()
    return (Batch(State(x.square().sum(-1), x)),)


def _turn_batch(g: Tensor, batch: Batch) -> Batch:
    return Batch(State(batch.features.scalars, batch.features.vectors @ g.T), batch.label)


def _turn_forces(g: Tensor, out: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**out, "forces": out["forces"] @ g.T}


CASES = (
    Case(
        "data dependent",
        "loops and branches on values read with .item()",
        lambda: Trunk(DataDependent()),
        {"middle.mix.x"},
    ),
    Case("called twice", "one module, two calls", lambda: Trunk(Twice()), {"middle.mix.x"}),
    Case("shared", "one module under two names", lambda: Trunk(Shared()), {"middle.first.x"}),
    Case("in place", "the input is written to", lambda: Trunk(InPlace()), {"middle.mix.x"}),
    Case("forces", "autograd.grad in forward", Forces, {"mix.x"}, act_output=_turn_forces),
    Case(
        "checkpointed",
        "activation checkpointing",
        lambda: Trunk(Checkpointed()),
        {"middle.inner.first.x", "middle.inner.second.x"},
    ),
    Case(
        "structured batch",
        "dataclass with a named tuple in, dict with a list out",
        Structured,
        {"mix.state.1"},
        inputs=_batch,
        act=_turn_batch,
    ),
    Case(
        "dict of degrees",
        "one matrix per degree of a dict",
        Degrees,
        {"mix.features.1"},
        audit={"mix.weights.0": "site"},
    ),
    Case("keyword argument", "called with keywords only", lambda: Trunk(Hidden()), {"middle.mix.x"}),
    Case(
        "two arguments",
        "linear in two feature arguments",
        lambda: Trunk(TwoArguments()),
        {"middle.mix.x", "middle.both.x", "middle.both.y"},
    ),
    Case("bilinear", "a product with edge weights", lambda: Trunk(Bilinear()), {"middle.mix.x", "middle.product.x"}),
    Case("dropout", "random in training mode only", lambda: Trunk(ReadsMode()), {"middle.mix.x"}),
)
