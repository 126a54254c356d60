"""Sites by cost, and the forms of their branches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import nn

import surgeon
from surgeon.editing.branch import LowRankBranch
from surgeon.editing.budget import with_blocks, with_fitting_rank, with_rank, within_budget
from surgeon.editing.relaxation import PenaltySettings
from surgeon.editing.strip import strip
from surgeon.errors import PlanError
from tests import nets


def plan_of(name: str = "linears") -> tuple[Any, Any, tuple[torch.Tensor, ...]]:
    net, inputs = nets.build(name)
    return net, nets.plan_of(name), inputs


def test_a_budget_takes_the_smallest_first() -> None:
    _, plan, _ = plan_of()
    sizes = {site.key: site.extra_parameters for site in plan.sites}
    small, large = sorted(sizes, key=sizes.__getitem__)
    assert sizes[small] < sizes[large]
    kept = within_budget(plan, sizes[large])
    assert [site.key for site in kept.sites] == [small]
    assert kept.skipped[-1].reason == f"over the budget of {sizes[large]:,} extra parameters"
    assert within_budget(plan, sum(sizes.values())).sites == plan.sites
    with pytest.raises(PlanError, match=r"got 1 parameters, and the smallest branch"):
        within_budget(plan, 1)


@pytest.mark.parametrize("name", ["linears", "products", "forces"])
def test_low_rank_branches_have_few_parameters_and_go_without_a_trace(name: str) -> None:
    net, plan, inputs = plan_of(name)
    low = with_rank(plan, 1)
    assert all(a.extra_parameters < b.extra_parameters for a, b in zip(low.sites, plan.sites, strict=True))
    expected = net.eval()(*inputs)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    relaxation = surgeon.relax(net, low, dense=True, init_scale=1.0)
    assert torch.equal(net(*inputs), expected)
    for site in low.sites:
        branch = relaxation.branches[site.key]
        assert isinstance(branch, LowRankBranch)
        assert torch.linalg.matrix_rank(branch.weight.detach()) == 1
    relaxation.set_theta(0.5)
    assert not torch.allclose(net.train()(*inputs), expected, rtol=1e-2)
    relaxation.penalty().backward()
    assert all(bool(parameter.grad.any()) for parameter in relaxation.branch_parameters())
    strip(relaxation)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_rank_that_saves_nothing_leaves_w_dense() -> None:
    _, plan, _ = plan_of()
    assert with_rank(plan, 100).sites == plan.sites
    with pytest.raises(PlanError, match="rank of at least 1"):
        with_rank(plan, 0)


def test_entries_outside_of_the_blocks_stay_zero() -> None:
    net, plan, inputs = plan_of()
    restricted = with_blocks(plan, [(1, 0)])
    relaxation = surgeon.relax(net, restricted, dense=True, init_scale=1.0)
    optimizer = torch.optim.AdamW(relaxation.branch_parameters(), lr=0.1)
    relaxation.set_theta(0.5)
    for _ in range(3):
        (net.train()(*inputs).square().mean() + relaxation.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for branch in relaxation.branches.values():
        assert branch.mask is not None
        assert not bool(branch.weight[branch.mask == 0].any())
        assert bool(branch.weight[branch.mask == 1].all())
    with pytest.raises(PlanError, match="has none of the blocks 7>7"):
        with_blocks(plan, [(7, 7)])


def test_rank_and_blocks_exclude_each_other() -> None:
    net, plan, _ = plan_of()
    restricted = with_blocks(plan, [(1, 1)])
    assert with_rank(restricted, 1) == restricted
    both = tuple(dataclasses.replace(site, rank=1) for site in restricted.sites)
    with pytest.raises(PlanError, match="either blocks or a rank"):
        surgeon.relax(net, dataclasses.replace(plan, sites=both))


IRREPS = "12x0e+12x1o+12x2e"


def wide(seed: int = 0) -> tuple[nn.Module, surgeon.Plan, torch.Tensor]:
    """A network with a wide op and a narrow one: 444 parameters, W of 108 x 108 and of 3 x 108."""
    torch.manual_seed(seed)
    net = nn.Sequential(o3.Linear(IRREPS, IRREPS), o3.Linear(IRREPS, "1x1o")).double()
    x = o3.Irreps(IRREPS).randn(9, -1, dtype=torch.float64)
    return net, surgeon.find(net, "O3", x), x


def test_unless_told_otherwise_the_branches_have_no_more_parameters_than_the_model() -> None:
    net, plan, x = wide()
    own = sum(parameter.numel() for parameter in net.parameters())
    wide_site, narrow_site = plan.sites
    chosen = with_fitting_rank(plan, 1000)
    assert [site.rank for site in chosen.sites] == [3, None]  # 3 * 216 + 3 * 108; with rank 4 they were 1188
    assert chosen.forms == "1 site dense, 1 of rank 3"
    expected = net(x)
    relaxation = surgeon.relax(net, plan)
    assert sum(parameter.numel() for parameter in relaxation.branch_parameters()) <= own
    assert [site.rank for site in relaxation.plan.sites] == [1, 1]
    assert relaxation.plan == with_fitting_rank(plan, own)
    relaxation.set_theta(1.0)
    assert torch.equal(net.train()(x), expected)  # W = 0 at first, whatever theta
    (net(x).square().sum() + relaxation.penalty()).backward()
    assert all(bool(branch.weight_b.grad.any()) for branch in relaxation.branches.values())
    strip(relaxation)
    assert [site.rank for site in surgeon.relax(net, plan, dense=True).plan.sites] == [None, None]
    assert with_fitting_rank(plan, wide_site.extra_parameters + narrow_site.extra_parameters) == plan


def test_what_has_a_form_keeps_it_and_rank_one_is_the_least() -> None:
    _, plan, _ = wide()
    given = dataclasses.replace(plan, sites=(dataclasses.replace(plan.sites[0], rank=7), plan.sites[1]))
    assert [site.rank for site in with_fitting_rank(given, 7 * 216 + 111).sites] == [7, 1]
    least = with_fitting_rank(plan, 100)
    assert [site.rank for site in least.sites] == [1, 1]
    assert least.notes[-1] == "branches of rank 1 at every site have 327 parameters, more than the budget of 100"
    assert with_fitting_rank(plan, 327).notes == plan.notes


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_a_low_rank_branch_is_penalised_and_stripped_as_its_dense_twin(mode: Any) -> None:
    """Of W = B A: output, penalty of some rows, its gradients by the chain rule, and what stripping leaves."""
    (low, plan, x), (dense, _, _) = wide(), wide()
    handles = [surgeon.relax(low, plan, mode=mode, init_scale=0.5), surgeon.relax(dense, plan, dense=True, mode=mode)]
    pairs = list(zip(*(handle.branches.values() for handle in handles), strict=True))
    for factors, twin in pairs:
        twin.weight.data.copy_(factors.weight)
    outputs, penalties = [], []
    for net, handle in zip((low, dense), handles, strict=True):
        handle.set_penalty(PenaltySettings(rows=5, every=1))
        handle.set_theta(0.7, 0.4 if mode == "fold" else 0.7)
        outputs.append(net.train()(x))
        penalties.append(handle.penalty())
        penalties[-1].backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*penalties)
    for factors, twin in pairs:
        torch.testing.assert_close(factors.weight_a.grad, factors.weight_b.detach().T @ twin.weight.grad)
        torch.testing.assert_close(factors.weight_b.grad, twin.weight.grad @ factors.weight_a.detach().T)
    records = [strip(handle) for handle in handles]
    for one, two in zip(*records, strict=True):
        assert (one.norm, one.folded, one.lost) == pytest.approx((two.norm, two.folded, two.lost))
        assert (one.folded > 0) == (mode == "fold")
    torch.testing.assert_close(low.state_dict(), dense.state_dict())
