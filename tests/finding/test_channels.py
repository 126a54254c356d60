"""Layers that mix channels of vectors and tensors are folded without an adapter, if that is all that they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.core import Representation
from surgeon.editing.branch import branches_of
from surgeon.errors import PlanError
from surgeon.plan import Plan

GROUP = parse_group("O3")
VECTORS, MIXED = "1x1o", "1x1o+1x2e"


class Net(nn.Module):
    """Features (n, d, 3) to (n, d): two layers on channels and a non-linearity between."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * h.norm(dim=-2, keepdim=True)).squeeze(-1)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, 2 * self.weight)


class Normalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight / self.weight.norm())


class Transposed(nn.Module):
    """Holds its matrix the other way round, as some libraries do."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class WithPositions(nn.Linear):
    """Also multiplies positions by its matrix, which folding would change as well."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().forward(x + positions)


class Positioned(Net):
    """Hands its input to the second layer once more."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x).squeeze(-1)


def plain(n_in: int, n_out: int) -> nn.Module:
    return nn.Linear(n_in, n_out, bias=False)


def rho(labels: str) -> Representation:
    return irreps(GROUP, labels)


def found(net: nn.Module, labels: str = VECTORS) -> tuple[Plan, Tensor]:
    """Plan of a network by measurement alone, and the features it was made on."""
    x = torch.randn(5, rho(labels).dimension, 3, dtype=torch.float64)

    def act(g: Tensor, x: Tensor) -> Tensor:
        return rho(labels).action(g).apply(x.mT)[0].mT

    def act_output(g: Tensor, y: Tensor) -> Tensor:
        return rho(labels).action(g).apply(y)[0]

    return surgeon.find(net, "O3", x, act=act, act_output=act_output, adapters={}), x


@pytest.mark.parametrize(
    ("labels", "note"), [(VECTORS, ""), (MIXED, "its weights reach 9 of 18 intertwiner dimensions")]
)
def test_the_mean_over_components_is_folded(labels: str, note: str) -> None:
    net = Net(plain(3, 3), plain(3, 1)).double()
    plan, x = found(net, labels)
    assert [(site.name, site.fold) for site in plan.sites] == [
        (n, {"parameter": "weight"}) for n in ("first", "second")
    ]
    assert plan.sites[0].fold_note == note
    before = net.first.get_parameter("weight").detach().clone()
    relaxation = surgeon.relax(net, plan, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    weight = branches_of(net)["first.input"].weight.detach()
    d = rho(labels).dimension
    expected = weight.reshape(d, 3, d, 3).diagonal(dim1=0, dim2=2).mean(-1)
    with relaxation.clean():
        clean = net(x).detach()
    surgeon.strip(relaxation)
    assert torch.allclose(net.first.get_parameter("weight"), before + expected, atol=1e-14)
    assert torch.allclose(net(x), clean, atol=1e-12)
    assert not torch.allclose(expected, torch.zeros(()).double(), atol=1e-3)


@pytest.mark.parametrize("make", [Scaled, Normalised, Transposed])
def test_what_does_more_than_multiply_by_its_matrix_is_not_folded(make: Callable[[int, int], nn.Module]) -> None:
    plan, _ = found(Net(make(3, 3), plain(3, 1)).double())
    folds = {site.name: site.fold for site in plan.sites}
    assert folds["second"] == {"parameter": "weight"}
    assert folds.get("first") is None


def test_a_matrix_that_multiplies_something_else_too_is_not_folded() -> None:
    plan, _ = found(Positioned(plain(3, 3), WithPositions(3, 1, bias=False)).double())
    assert [(site.name, site.fold is None) for site in plan.sites] == [("first", False), ("second", True)]


def test_tied_weights_are_not_folded() -> None:
    net = Net(plain(3, 3), nn.Sequential(plain(3, 3), plain(3, 1))).double()
    net.second[0].weight = net.first.weight
    plan, _ = found(net)
    notes = {site.name: site.fold_note for site in plan.sites if site.fold is None}
    assert notes.keys() == {"first", "second.0"}
    assert all("tied to" in note for note in notes.values())


def test_a_plan_for_another_matrix_is_refused() -> None:
    net = Net(plain(3, 3), plain(3, 1)).double()
    plan, _ = found(net)
    other = dataclasses.replace(plan.sites[0], fold={"parameter": "matrix"})
    with pytest.raises(PlanError, match="expected 'first' to own a matrix 'matrix'"):
        surgeon.relax(net, dataclasses.replace(plan, sites=(other,)), mode="fold")
