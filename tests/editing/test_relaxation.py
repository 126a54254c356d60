"""The handle: coefficients, penalty on the recorded inputs, clean evaluation, and what theta does to the symmetry."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.penalty import EPSILON
from surgeon.algebra.schedule import Schedule
from surgeon.editing.branch import branches_of
from surgeon.editing.relaxation import PenaltySettings
from surgeon.errors import SurgeonError, UsageError
from tests import nets
from tests.formulas import commutator_penalty, commutator_penalty_rows, norm_penalty, norm_penalty_rows

pytestmark = pytest.mark.e3nn


def match_scale(net: Any, relaxation: Any, inputs: tuple[Tensor, ...]) -> None:
    """Scale each W so that |W x| is |f_e(x)| at theta = 1, on the op's own inputs."""
    seen: dict[str, Tensor] = {}
    hooks = []
    for site in relaxation.plan.sites:
        op = net.get_submodule(site.name)

        def keep(_: Any, args: Any, output: Tensor, key: str = site.key) -> None:
            seen[key] = output.norm() / (args[0] @ relaxation.branches[key].weight.T).norm()

        hooks.append(op.register_forward_hook(keep))
    relaxation.set_theta(0.0)
    net(*inputs)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for key, branch in relaxation.branches.items():
            branch.weight.mul_(seen[key])


@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("name", nets.NETS)
def test_the_relaxed_network_is_not_equivariant_and_the_clean_one_is(name: str, mode: str) -> None:
    twin, net, relaxation, inputs = nets.relaxed(name, mode=mode)
    match_scale(net, relaxation, inputs)
    original = nets.network_error(twin, inputs)
    assert original < 1e-12
    for theta in (0.1, 0.5, 1.0):
        relaxation.set_theta(theta)
        assert nets.network_error(net, inputs) > 1e-3
        with relaxation.clean():
            assert nets.network_error(net, inputs) < 1e-12
    relaxation.set_theta(0.0)
    assert nets.network_error(net, inputs) < 1e-12


def test_the_parallel_part_alone_breaks_nothing_but_changes_the_function() -> None:
    twin, net, relaxation, inputs = nets.relaxed("products", mode="fold")
    relaxation.set_theta(0.0, 1.0)
    assert nets.network_error(net, inputs) < 1e-12
    assert (net(*inputs) - twin(*inputs)).norm() > 0.1
    relaxation.set_theta(0.01, 1.0)
    assert nets.network_error(net, inputs) > 1e-4


def test_progress_sets_both_coefficients() -> None:
    for mode, expected in (("drop", (0.5, 0.5)), ("fold", (0.5, 1.0))):
        net, _ = nets.build("linears")
        plan = nets.plan_of("linears")
        relaxation = surgeon.relax(net, plan, dense=True, mode=mode, schedule=Schedule("triangle", tail=0.0))  # type: ignore[arg-type]
        assert relaxation.theta == (0.0, 0.0)
        relaxation.set_progress(0.75)
        assert relaxation.theta == expected
        assert all(tuple(branch.theta.tolist()) == expected for branch in relaxation.branches.values())
        relaxation.set_progress(1.0)
        assert relaxation.theta[0] == 0.0


def test_a_step_is_no_share_and_theta_is_finite() -> None:
    _, _, relaxation, _ = nets.relaxed("linears")
    relaxation.set_progress(0.25)
    before = relaxation.thetas
    with pytest.raises(UsageError, match="pass step / steps"):
        relaxation.set_progress(2)
    with pytest.raises(UsageError, match="finite"):
        relaxation.set_theta(float("nan"))
    assert relaxation.thetas == before


def test_the_coefficients_are_not_in_the_state_dict() -> None:
    _, net, relaxation, _ = nets.relaxed("linears")
    before = nets.state(net)
    relaxation.set_theta(0.3)
    assert nets.state(net) == before


def site_rows(net: Any, relaxation: Any, batches: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """What each op really receives over some batches."""
    rows: dict[str, list[Tensor]] = {key: [] for key in relaxation.branches}
    hooks = []
    for site in relaxation.plan.sites:

        def keep(_: Any, args: Any, key: str = site.key) -> None:
            rows[key].append(args[0].detach().reshape(-1, args[0].shape[-1]))

        hooks.append(net.get_submodule(site.name).register_forward_pre_hook(keep))
    for batch in batches:
        net(*batch)
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(parts) for key, parts in rows.items()}


@pytest.mark.parametrize("form", ["gram", "rows"])
@pytest.mark.parametrize("name", ["linears", "reused", "products"])
def test_the_penalty_is_that_of_all_inputs_since_the_last_one(name: str, form: str) -> None:
    _, net, relaxation, inputs = nets.relaxed(name, form=form)
    other = tuple(torch.randn_like(x[:3]) for x in inputs)
    relaxation.set_theta(0.4)
    rows = site_rows(net, relaxation, [inputs, other])
    total = relaxation.penalty()
    terms = relaxation.penalty_terms()
    assert torch.allclose(total, torch.stack([part for pair in terms.values() for part in pair]).sum(), rtol=1e-12)
    assert list(terms) == [site.key for site in relaxation.plan.sites]
    for site in relaxation.plan.sites:
        x, weight = rows[site.key], relaxation.branches[site.key].weight
        rho_out, rho_in = site.rho_out, site.rho_in
        moments = x.T @ x / len(x)
        if form == "gram":
            expected = norm_penalty(weight, moments), commutator_penalty(weight, rho_out, rho_in, moments)
        else:
            expected = norm_penalty_rows(weight, x), commutator_penalty_rows(weight, rho_out, rho_in, x)
        assert float(expected[1].detach()) > 0.1
        for found, value in zip(terms[site.key], expected, strict=True):
            assert torch.allclose(found, value, rtol=1e-10)
    assert not relaxation.penalty(may_be_empty=True)
    assert relaxation.penalty_terms() == {}


@pytest.mark.parametrize("form", ["gram", "rows"])
def test_the_penalty_does_not_depend_on_the_batch_size(form: str) -> None:
    _, net, relaxation, (x,) = nets.relaxed("linears", form=form)
    values = []
    for batch in (x, x.repeat(4, 1)):
        net(batch)
        values.append(float(relaxation.penalty().detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_the_penalty_does_not_see_what_runs_unseen() -> None:
    _, net, relaxation, (x,) = nets.relaxed("linears")
    values = []
    for runs in ([x], [x, 3 * x]):
        net(runs[0])
        with relaxation.unseen():
            for further in runs[1:]:
                net(further)
        values.append(float(relaxation.penalty().detach()))
    assert values[0] == values[1]
    net(x)
    net(3 * x)
    assert float(relaxation.penalty().detach()) > 1.1 * values[0]


def test_the_gram_form_bounds_the_printed_one() -> None:
    values = {}
    for form in ("gram", "rows"):
        torch.manual_seed(3)
        _, net, relaxation, inputs = nets.relaxed("linears", form=form)
        net(*inputs)
        values[form] = float(relaxation.penalty().detach())
    assert values["rows"] < values["gram"] < 2 * values["rows"]


def test_the_penalty_reaches_the_branches_alone_and_is_finite_at_zero() -> None:
    for scale in (0.0, 1.0):
        _, net, relaxation, inputs = nets.relaxed("linears", scale=scale)
        net(*inputs)
        relaxation.penalty().backward()
        assert all(parameter.grad is None for parameter in relaxation.base_parameters())
        for weight in relaxation.branch_parameters():
            assert weight.grad.isfinite().all()
            assert bool(weight.grad.any()) == bool(scale)


def test_nothing_is_recorded_in_eval_without_gradients_when_disabled_or_clean() -> None:
    _, net, relaxation, inputs = nets.relaxed("linears")
    with torch.no_grad():
        net(*inputs)
    net.eval()(*inputs)
    net.train()
    with relaxation.clean():
        net(*inputs)
    relaxation.enable_penalty(False)
    net(*inputs)
    assert not relaxation.penalty()
    relaxation.enable_penalty(True)
    with pytest.warns(UserWarning, match="no branch recorded features"):
        assert not relaxation.penalty()
    assert not relaxation.penalty(may_be_empty=True)
    net(*inputs)
    assert relaxation.penalty() > 0
    assert len(relaxation.penalty_terms()) == 2


def test_a_penalty_of_earlier_features_says_so() -> None:
    """A site that is computed anew every other step keeps its terms meanwhile."""
    _, net, relaxation, inputs = nets.relaxed("linears")
    relaxation.set_penalty(PenaltySettings(every=2))
    net(*inputs)
    relaxation.penalty()
    with pytest.warns(UserWarning, match="is that of earlier features, since the branches whose turn it was"):
        relaxation.penalty()
    relaxation.penalty(may_be_empty=True)
    net(*inputs)
    relaxation.penalty()


def test_a_schedule_by_its_name_also_later_and_what_is_none() -> None:
    _, net, relaxation, _ = nets.relaxed("linears")
    relaxation.schedule = "one-sided"
    assert relaxation.schedule == Schedule("one-sided")
    with pytest.raises(UsageError, match=r"a surgeon.Schedule or the name of one \(triangle, .*got function"):
        relaxation.schedule = lambda progress: 1.0
    surgeon.strip(net)


def test_what_is_no_network_plan_or_group_is_named() -> None:
    _, net, _, inputs = nets.relaxed("linears")
    surgeon.strip(net)
    calls: Any = (surgeon.find, surgeon.relax, surgeon.strip, surgeon.optim.soap)
    find, relax, strip, soap = calls
    refused = {
        "expected a Plan, got str: use surgeon.find, or Plan.from_json": (
            lambda: relax(net, "plan.json", dense=True),
            lambda: soap(net, "O3"),
        ),
        r"expected a network \(torch.nn.Module\), got \w+: give the module": (
            lambda: find("net.pt", "O3", *inputs),
            lambda: relax("net.pt", None),
            lambda: strip("net-run"),
            lambda: soap(net.parameters()),
        ),
        "expected a group or its name, got Tensor: choose": (lambda: find(net, inputs[0], "O3"),),
    }
    for words, misuses in refused.items():
        for misuse in misuses:
            with pytest.raises(SurgeonError, match=words):
                misuse()


def test_the_defect_term_pulls_towards_an_intertwiner() -> None:
    _, net, relaxation, _ = nets.relaxed("linears")
    before = relaxation.defects()
    optimizer = torch.optim.Adam(relaxation.branch_parameters(), lr=0.02)
    for _ in range(100):
        net(torch.randn(32, 11, dtype=torch.float64))
        optimizer.zero_grad()
        terms = []
        for site in relaxation.plan.sites:
            branch = relaxation.branches[site.key]
            rho_out, rho_in = site.rho_out, site.rho_in
            terms.append(commutator_penalty(branch.weight, rho_out, rho_in, branch.recorded.matrix()))
            branch.record(branch.tap)
        torch.stack(terms).sum().backward()
        optimizer.step()
    after = relaxation.defects()
    assert after["first.features"] < 0.1 * before["first.features"]
    # Nothing ever reaches the 2e inputs of the second layer, and what no data reaches is not penalised.
    assert after["second.features"] > 1.0


def test_defects_vanish_for_intertwiners_only() -> None:
    _, _, relaxation, _ = nets.relaxed("linears")
    assert all(value > 0.5 for value in relaxation.defects().values())
    with torch.no_grad():
        for branch in relaxation.branches.values():
            branch.weight.copy_(branch.foldable_part())
    assert all(value < 1e-12 for value in relaxation.defects().values())
    with torch.no_grad():
        for branch in relaxation.branches.values():
            branch.weight.zero_()
    assert set(relaxation.defects().values()) == {0.0}


def test_an_intertwiner_pays_the_norm_only() -> None:
    _, net, relaxation, inputs = nets.relaxed("linears")
    with torch.no_grad():
        for branch in relaxation.branches.values():
            branch.weight.copy_(branch.foldable_part())
    net(*inputs)
    relaxation.penalty()
    for norm, defect in relaxation.penalty_terms().values():
        assert float(defect) <= 4 * math.sqrt(EPSILON) * (1 + 1e-9)
        assert float(norm) > 0.1


def test_parameters_are_divided_without_rest() -> None:
    twin, net, relaxation, _ = nets.relaxed("reused")
    assert len(relaxation.base_parameters()) == len(list(twin.parameters()))
    assert len(relaxation.branch_parameters()) == 2
    assert len(list(net.parameters())) == len(relaxation.base_parameters()) + 2


def test_clean_contexts_nest_and_close_after_an_error() -> None:
    twin, net, relaxation, inputs = nets.relaxed("linears")
    relaxation.set_theta(1.0)
    expected = twin(*inputs)
    with relaxation.clean():
        with relaxation.clean() as inner:
            assert torch.equal(inner(*inputs), expected)
        assert torch.equal(net(*inputs), expected)
    with pytest.raises(RuntimeError, match="stop"), relaxation.clean():
        raise RuntimeError("stop")
    assert not torch.equal(net(*inputs), expected)


def test_a_copied_handle_has_its_own_branches() -> None:
    _, net, relaxation, inputs = nets.relaxed("linears")
    twin = copy.deepcopy(relaxation)
    twin.set_theta(1.0)
    assert relaxation.theta == (0.0, 0.0)
    assert not torch.equal(twin.model(*inputs), net(*inputs))
    surgeon.strip(twin)
    assert branches_of(net)


def test_a_relaxation_is_told_in_one_line() -> None:
    net, inputs = nets.build("linears")
    relaxation = surgeon.relax(net, surgeon.find(net, parse_group("O3"), *inputs), dense=True)
    relaxation.set_theta(0.5)
    count = len(relaxation.branches)
    words = f"Relaxation({type(net).__name__}, {count} branches under O3, mode 'drop', theta 0.5, penalty 'gram')"
    assert repr(relaxation) == words
    relaxation.enable_penalty(False)
    assert repr(relaxation).endswith("penalty 'off')")
