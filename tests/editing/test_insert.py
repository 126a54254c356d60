"""Insertion at theta = 0 changes nothing; what does not fit leaves the model untouched."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.editing import insert
from surgeon.editing.branch import Branch, branches_of
from surgeon.errors import PlanError, SurgeryError, UsageError
from surgeon.plan import CHILD, Plan
from tests import nets

pytestmark = pytest.mark.e3nn

DTYPES = [torch.float32, torch.float64]


def gradients(net: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor | None]]:
    net.zero_grad()
    out = net(*inputs)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters() if CHILD not in name}


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", nets.NETS)
def test_at_theta_zero_outputs_and_gradients_are_equal(name: str, dtype: Any, scale: float, mode: str) -> None:
    twin, net, relaxation, inputs = nets.relaxed(name, dtype, mode=mode, scale=scale)
    assert bool(relaxation.branch_parameters()[0].any()) == bool(scale)
    (expected, base), (out, found) = gradients(twin, inputs), gradients(net, inputs)
    assert torch.equal(out, expected)
    assert found.keys() == base.keys()
    assert all(torch.equal(found[key], base[key]) for key in base)
    assert any(grad.any() for grad in base.values())
    with relaxation.clean():
        assert torch.equal(net.eval()(*inputs), twin.eval()(*inputs))


@pytest.mark.parametrize("name", nets.NETS)
def test_at_theta_one_they_are_not(name: str) -> None:
    twin, net, relaxation, inputs = nets.relaxed(name)
    relaxation.set_theta(1.0)
    assert (net(*inputs) - twin(*inputs)).norm() > 1e-2


@pytest.mark.parametrize("name", nets.NETS)
def test_keys_classes_and_attributes_are_kept(name: str) -> None:
    twin, net, relaxation, _ = nets.relaxed(name)
    assert [key for key in net.state_dict() if CHILD not in key] == list(twin.state_dict())
    for (part_name, part), site in zip(relaxation.branches.items(), relaxation.plan.sites, strict=True):
        op, original = net.get_submodule(site.name), twin.get_submodule(site.name)
        assert part_name == site.key
        assert type(op) is type(original)
        assert str(op.irreps_out) == str(original.irreps_out)
        assert op.weight is op._parameters["weight"]
        assert part.weight.shape == site.shape
    assert len([key for key, _ in net.named_parameters() if CHILD in key]) == len(relaxation.plan.sites)


def test_a_shared_module_has_one_branch() -> None:
    _, net, relaxation, _ = nets.relaxed("reused")
    assert list(relaxation.branches) == ["twice.features", "shared.features"]
    assert branches_of(net.alias) == {"features": relaxation.branches["shared.features"]}
    assert [site.calls for site in relaxation.plan.sites] == [2, 2]


@pytest.mark.parametrize("name", nets.NETS)
def test_copies_and_pickles_work_by_themselves(name: str) -> None:
    _, net, relaxation, inputs = nets.relaxed(name)
    relaxation.set_theta(0.5)
    expected = net(*inputs)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(*inputs), expected)
        with torch.no_grad():
            for branch in branches_of(twin).values():
                branch.weight.zero_()
        assert not torch.equal(twin(*inputs), expected)
    assert torch.equal(net(*inputs), expected)


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_double_backward_reaches_branches(mode: str) -> None:
    _, net, relaxation, inputs = nets.relaxed("forces", mode=mode)
    relaxation.set_theta(0.5, 0.7)
    net(*inputs).square().sum().backward()
    for branch in relaxation.branches.values():
        assert branch.weight.grad.norm() > 1e-6

    weight = relaxation.branches["mix.features"].weight
    direction, step = torch.randn_like(weight), 1e-6
    slope = float((weight.grad * direction).sum())
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * step)
        values.append(float(net(*inputs).square().sum().detach()))
        with torch.no_grad():
            weight.add_(direction, alpha=-sign * step)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_the_initial_weights_depend_on_the_seed_alone() -> None:
    net, _ = nets.build("linears")
    plan = nets.plan_of("linears")
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + 100)
        relaxation = surgeon.relax(copy.deepcopy(net), plan, dense=True, init_scale=1.0, seed=seed)
        drawn.append(torch.cat([w.detach().flatten() for w in relaxation.branch_parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_branches_take_mode_and_dtype_from_their_op() -> None:
    net, _ = nets.build("linears", torch.float32)
    plan = nets.plan_of("linears", torch.float32)
    relaxation = surgeon.relax(net.eval(), plan, dense=True)
    assert all(not branch.training for branch in relaxation.branches.values())
    assert all(branch.theta.dtype == branch.weight.dtype == torch.float32 for branch in relaxation.branches.values())


def plan_and_net(name: str = "products") -> tuple[Plan, Any]:
    return nets.plan_of(name), nets.build(name)[0]


def with_site(plan: Plan, **changes: Any) -> Plan:
    return dataclasses.replace(plan, sites=(dataclasses.replace(plan.sites[0], **changes), *plan.sites[1:]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda plan: with_site(plan, name="nowhere"), PlanError, "submodule 'nowhere'"),
        (lambda plan: with_site(plan, name="by_mode"), PlanError, "'x' of ModuleDict.forward"),
        (lambda plan: with_site(plan, argument="z"), PlanError, "'z' of FullyConnectedTensorProduct.forward"),
        (lambda plan: with_site(plan, argument="y"), PlanError, "takes W of shape .* on 'y'"),
        (lambda plan: with_site(plan, shape=(9, 9)), PlanError, "shape .9, 8. of its representations"),
        (
            lambda plan: with_site(plan, rho_in=irreps(parse_group("O3"), "9x0e"), shape=(9, 9)),
            PlanError,
            "made for another model",
        ),
        (lambda plan: with_site(plan, fold={"parameter": "weight"}), PlanError, "fold"),
        (lambda plan: with_site(plan, adapter="nobody"), PlanError, "'nobody'.*e3nn"),
        (lambda plan: dataclasses.replace(plan, group="SO13"), PlanError, "of SO13, the plan's group, got .* of O3"),
        (lambda plan: dataclasses.replace(plan, sites=()), PlanError, "nothing to relax"),
        (lambda plan: dataclasses.replace(plan, sites=plan.sites + plan.sites[:1]), PlanError, "more than once"),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(change: Any, error: type[Exception], words: str) -> None:
    plan, net = plan_and_net()
    before, marks = nets.state(net), nets.traces(net)
    with pytest.raises(error, match=words):
        surgeon.relax(net, change(plan), dense=True, mode="fold")
    assert nets.state(net) == before
    assert nets.traces(net) == marks
    assert len(surgeon.relax(net, plan, dense=True).branches) == 7


def test_a_fold_that_does_not_fit_is_refused_when_it_is_asked_for() -> None:
    plan, net = plan_and_net()
    before = nets.state(net)
    surgeon.relax(net, with_site(plan, fold={"parameter": "weight"}), dense=True).set_theta(0.5)
    with pytest.raises(PlanError, match="to fold into"):
        surgeon.strip(net, "fold")
    surgeon.strip(net, "drop")
    assert nets.state(net) == before


def test_another_name_of_a_shared_module_is_refused() -> None:
    plan, net = plan_and_net("reused")
    alias = dataclasses.replace(plan.sites[1], name="alias")
    with pytest.raises(PlanError, match="'alias' is another name"):
        surgeon.relax(net, dataclasses.replace(plan, sites=(*plan.sites, alias)), dense=True)
    assert branches_of(net) == {}


def test_a_relaxed_model_is_refused() -> None:
    _, net, relaxation, _ = nets.relaxed("linears")
    with pytest.raises(PlanError, match="strip it first"):
        surgeon.relax(net, relaxation.plan, dense=True)
    assert len(branches_of(net)) == len(relaxation.branches)


def test_an_unknown_mode_is_refused() -> None:
    plan, net = plan_and_net("linears")
    with pytest.raises(UsageError, match="'drop' or 'fold', got 'keep'"):
        surgeon.relax(net, plan, dense=True, mode="keep")  # type: ignore[arg-type]


def test_a_torchscript_module_is_refused() -> None:
    plan, net = plan_and_net("linears")
    net.first = torch.jit.script(torch.nn.Linear(11, 11))
    with pytest.raises(PlanError, match="TorchScript"):
        surgeon.relax(net, plan, dense=True)


@pytest.mark.parametrize("failing", [0, 1, 6])
def test_a_failure_half_way_takes_everything_out_again(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, net = plan_and_net()
    before, marks = nets.state(net), nets.traces(net)
    calls = []

    def attach(op: Any, argument: str, branch: Branch) -> None:
        calls.append(op)
        insert_for_real(op, argument, branch)
        if len(calls) > failing:
            raise RuntimeError("out of luck")

    insert_for_real = insert.attach
    monkeypatch.setattr(insert, "attach", attach)
    with pytest.raises(SurgeryError, match="out of luck.*as it was"):
        surgeon.relax(net, plan, dense=True, init_scale=1.0)
    assert len(calls) == failing + 1
    assert nets.state(net) == before
    assert nets.traces(net) == marks


def test_a_plan_survives_json() -> None:
    plan, net = plan_and_net()
    again = Plan.from_data(json.loads(plan.to_json()))
    assert again.to_data() == plan.to_data()
    assert len(surgeon.relax(net, again, dense=True, mode="fold").branches) == len(plan.sites)
