"""Folds that take an op's other arguments for constant say so, and are tried on data where these may differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.editing.branch import branches_of
from surgeon.editing.conditions import check_folds
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import SurgeryError
from surgeon.plan import Plan
from tests import nets
from tests.nets import o3

pytestmark = pytest.mark.e3nn

ROWS = 40
WHILE = "scalar 0 of y is 1 and scalar 1 of y is 0.7"


class Net(nn.Module):
    """A layer, and a product with attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = o3.Linear("2x0e+2x1o", "2x0e+2x1o")
        self.product = o3.FullyConnectedTensorProduct("2x0e+2x1o", nets.ATTRIBUTES, "2x1o")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.product(self.linear(x), y)


Batch = tuple[Tensor, Tensor]


def batch(scalars: tuple[float, float] = (1.0, 0.7)) -> Batch:
    return torch.randn(ROWS, 8, dtype=torch.float64), nets.attributes(ROWS, torch.float64, scalars)


def relaxed(mode: Any = "fold") -> Relaxation:
    with nets.default_dtype(torch.float64):
        net = Net()
    relaxation = surgeon.relax(net, surgeon.find(net, "O3", *batch()), dense=True, mode=mode, init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    return relaxation


def check(relaxation: Relaxation, batches: Sequence[Batch]) -> dict[str, int]:
    return check_folds(relaxation, batches, lambda model, given: model(*given), "the validation split")


def test_plan_and_record_say_what_a_fold_takes_for_constant() -> None:
    relaxation = relaxed()
    plan = Plan.from_data(json.loads(relaxation.plan.to_json()))
    assert {site.name: site.fold_while for site in plan.sites} == {"linear": "", "product": WHILE}
    assert all(site.fold is not None and site.fold_note == "" for site in plan.sites)
    notes = {record.name: record.note for record in strip(relaxation)}
    assert notes == {"linear": "folded", "product": f"folded, exact while {WHILE}"}


@pytest.mark.parametrize("mode", ["fold", "drop"])
def test_the_same_scalars_pass_and_nothing_changes(mode: str) -> None:
    relaxation = relaxed(mode)
    model = relaxation.model.train()
    before, traces = nets.state(model), nets.traces(model)
    assert check(relaxation, [batch(), batch(), batch()]) == {"product.x": 3}
    assert (nets.state(model), nets.traces(model)) == (before, traces)
    assert {(branch.mode, branch.clean) for branch in branches_of(model).values()} == {(mode, False)}


@pytest.mark.parametrize("row", [slice(None), slice(7, 8)])
def test_another_scalar_in_a_later_batch_is_refused(row: slice) -> None:
    relaxation, other = relaxed(), batch()
    other[1][row, 0] = 1.01
    before = nets.state(relaxation.model)
    with pytest.raises(
        SurgeryError, match=rf"'product.x' .* the validation split, .* while {WHILE}, but on batch 2 .*"
    ):
        check(relaxation, [batch(), other])
    assert nets.state(relaxation.model) == before
    assert not relaxation.model.get_submodule("product")._forward_pre_hooks


def test_the_refused_fold_would_have_changed_the_function() -> None:
    relaxation, (x, y) = relaxed(), batch((2.0, 0.7))
    with relaxation.clean():
        clean = relaxation.model(x, y).detach()
    lost = [record.lost for record in strip(relaxation)]
    assert max(lost) < 1e-12
    assert (relaxation.model(x, y).detach() - clean).norm() > 0.1 * clean.norm()


def test_an_op_that_the_data_do_not_reach_was_not_looked_at() -> None:
    relaxation = relaxed()
    assert check_folds(relaxation, [batch()], lambda model, given: model.linear(given[0])) == {"product.x": 0}


class Gated(nn.Linear):
    """Multiplies by a gate, which no annotation speaks of."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return gate * super().forward(x)


class Measured(nn.Module):
    """Vectors, as (n, 3, 4), through a layer and one that is called twice; ``more`` is the gate of the second call."""

    def __init__(self, more: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.more = nn.Linear(4, 4, bias=False), Gated(4, 1, bias=False), more

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        hidden = self.first(x)
        return (self.second(hidden, gate) + self.second(hidden * hidden.norm(), self.more * gate)).squeeze(-1)


class GatedLinear(o3.Linear):
    """The same of a layer that is annotated."""

    def forward(self, features: Tensor, gate: Tensor) -> Tensor:
        return gate * super().forward(features)


class Annotated(nn.Module):
    def __init__(self, more: float = 1.0) -> None:
        super().__init__()
        self.layer, self.more = GatedLinear("2x1o", "2x1o"), more

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.ones(len(x), 1)
        return self.layer(self.layer(x, gate), self.more * gate)


@pytest.mark.parametrize("more", [1.0, 2.0])
def test_a_fold_has_to_be_right_in_every_call_of_the_sample_batch(more: float) -> None:
    (site,) = surgeon.find(Annotated(more), "O3", torch.randn(4, 6)).sites
    assert (site.fold is None, bool(site.fold_while)) == (more != 1, more == 1)
    second = next(site for site in measured_plan(Measured(more).double()).sites if site.name == "second")
    assert (second.fold is None, bool(second.fold_while)) == (more != 1, more == 1)


RHO = irreps(parse_group("O3"), "1x1o")


def sample(gate: float) -> Batch:
    return torch.randn(5, 3, 4, dtype=torch.float64), torch.full((5, 1, 1), gate, dtype=torch.float64)


def measured_plan(net: nn.Module, batch: Batch | None = None) -> Plan:
    def act(g: Tensor, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        return RHO.action(g).apply(x.mT)[0].mT, gate

    def act_output(g: Tensor, y: Tensor) -> Tensor:
        return RHO.action(g).apply(y)[0]

    return surgeon.find(net, "O3", *(batch or sample(1.0)), act=act, act_output=act_output, adapters={})


def test_a_further_argument_without_rows_is_a_condition_as_a_whole() -> None:
    plan = measured_plan(Measured().double(), (sample(1.0)[0], torch.ones((), dtype=torch.float64)))
    assert {site.name: site.fold_while for site in plan.sites} == {
        "first": "",
        "second": "gate acts as on the sample batch",
    }


def test_any_further_argument_of_a_measured_op_is_a_condition() -> None:
    net = Measured().double()
    plan = measured_plan(net)
    words = "scalar 0 of gate is 1"
    assert {site.name: (site.fold is not None, site.fold_while) for site in plan.sites} == {
        "first": (True, ""),
        "second": (True, words),
    }
    relaxation = surgeon.relax(net, plan, dense=True, mode="fold", init_scale=1.0)
    assert check(relaxation, [sample(1.0)]) == {"second.x": 1}
    with pytest.raises(SurgeryError, match=f"'second.x' .* while {words}, but on batch 1"):
        check(relaxation, [sample(2.0)])
    relaxation.set_theta(0.0, 1.0)
    assert [record.note for record in strip(relaxation)] == ["folded", f"folded, exact while {words}"]
