"""Awkward models that transform functions by torch.func, or begin with numbers that their forward makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case, Mix, Trunk, gated


class Forces(nn.Module):
    """Forces as derivatives of an energy by a transform of torch.func; one weight is the forward's own."""

    def __init__(self, transform: str, fixed: bool = False) -> None:
        super().__init__()
        self.transform, self.mix, self.weight = transform, Mix(), nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)
        self.direction = torch.tensor([1.0, 1.0, float(not fixed)])

    def energy(self, x: Tensor) -> Tensor:
        h = torch.einsum("oc,ncv->nov", self.weight, gated(self.mix(x)))
        return (h.square() * self.direction.to(h)).sum()

    def forward(self, x: Tensor) -> Tensor:
        if self.transform == "vjp":
            return -torch.func.vjp(self.energy, x)[1](torch.ones_like(x[0, 0, 0]))[0]
        if self.transform == "jvp":  # what the forces change by along x
            return torch.func.jvp(torch.func.grad(self.energy), (x,), (x,))[1]
        return -getattr(torch.func, self.transform)(self.energy)(x)


class Mapped(nn.Module):
    """A layer, or a weight of the forward's own, that sees one row at a time."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.mix = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2)

    def forward(self, x: Tensor) -> Tensor:
        def row(vectors: Tensor) -> Tensor:
            return self.weight @ vectors if self.own else self.mix(vectors.T).T

        y = gated(torch.vmap(row)(x))  # type: ignore[no-untyped-call]
        return self.mix(y.mT).mT if self.own else torch.einsum("oc,ncv->nov", self.weight, y)


class Recurrent(nn.Module):
    """A state that begins with zeros of torch's default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.cell = nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2), nn.GRUCell(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x.square().sum(-1), torch.zeros(7, CHANNELS))
        return torch.einsum("oc,ncv->nov", self.weight, x) * state.tanh()[..., None]


def turn(g: Tensor, y: Tensor) -> Tensor:
    return y @ g.T


CASES = (
    *(
        Case(
            f"forces by torch.func.{transform}",
            "modules and weights run inside a transform of torch.func",
            lambda transform=transform: Forces(transform),  # type: ignore[misc]
            {"mix.x", "weight"},
            act_output=turn,
            sound=transform != "jvp",  # torch itself cannot differentiate some of it again
        )
        for transform in ("grad", "jacrev", "vjp", "jvp")
    ),
    Case(
        "forces of an energy with a direction",
        "broken twin of forces by torch.func.grad",
        lambda: Forces("grad", fixed=True),
        error="to be a symmetry of the model",
        act_output=turn,
        twin=True,
    ),
    Case("mapped layer", "a layer under vmap", lambda: Trunk(Mapped(False)), {"middle.mix.input", "middle.weight"}),
    Case(
        "mapped weight",
        "a weight of the forward's own under vmap",
        lambda: Trunk(Mapped(True)),
        {"middle.mix.input"},
        reason={"middle.weight": "under vmap"},
    ),
    Case("recurrent", "torch.zeros in the forward", lambda: Trunk(Recurrent()), {"middle.weight"}),
)
