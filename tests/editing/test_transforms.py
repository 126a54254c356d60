"""Branches inside the transforms of torch.func do what they do outside of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.editing.use import watched
from surgeon.plan import StripMode
from tests.families.awkward.case import CHANNELS, Mix, gated, vectors
from tests.families.awkward.functions import Forces, turn


class ByAutograd(Forces):
    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.energy(x), x, create_graph=True)
        return -gradient


class Rows(nn.Module):
    """A layer, under vmap or not."""

    def __init__(self, mapped: bool) -> None:
        super().__init__()
        self.mapped, self.first, self.last = mapped, Mix(), nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = gated(self.first(x)).mT
        y = torch.vmap(self.last)(x) if self.mapped else self.last(x)  # type: ignore[no-untyped-call]
        return gated(y.mT)


def trained(model: nn.Module, mode: StripMode = "drop") -> list[Tensor]:
    """Return the output, the penalty, what is seen of the branches, and all gradients, at theta = 0.5."""
    x = vectors().float()
    plan = surgeon.find(model, "SO3", x, act=lambda g, x: x @ g.T, act_output=turn, adapters={})
    relaxation = surgeon.relax(model, plan, dense=True, init_scale=0.5, mode=mode)
    relaxation.set_theta(0.5, 0.3 if mode == "fold" else None)
    with watched(relaxation) as use:
        y = model.train()(x)
    penalty = relaxation.penalty()
    (y.square().mean() + penalty).backward()
    ratios = [float(each or 0) for each in use.ratios()["share"]]
    assert len(plan.sites) == 2
    assert penalty > 0
    assert min(ratios) > 0
    gradients = [parameter.grad for parameter in model.parameters()]
    return [y.detach(), penalty.detach(), torch.tensor(ratios), *(each for each in gradients if each is not None)]


def made(build: type[nn.Module], *arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return build(*arguments)


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_gradients_and_penalty_under_grad_are_those_of_autograd(mode: StripMode) -> None:
    torch.testing.assert_close(trained(made(Forces, "grad"), mode), trained(made(ByAutograd, "grad"), mode))


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_gradients_and_penalty_under_vmap_are_those_of_all_rows(mode: StripMode) -> None:
    torch.testing.assert_close(trained(made(Rows, True), mode), trained(made(Rows, False), mode))
