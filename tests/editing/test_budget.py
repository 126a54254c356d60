"""Sites by cost and worth, and the forms of their branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import surgeon
from surgeon.editing.branch import LowRankBranch
from surgeon.editing.budget import best_scored, with_blocks, with_rank, within_budget
from surgeon.editing.strip import strip
from surgeon.errors import PlanError
from tests import nets


def plan_of(name: str = "linears") -> tuple[Any, Any, tuple[torch.Tensor, ...]]:
    net, inputs = nets.build(name)
    return net, surgeon.find(net, "O3", *inputs), inputs


def test_a_budget_takes_the_smallest_first_or_the_best_for_its_price() -> None:
    _, plan, _ = plan_of()
    sizes = {site.key: site.extra_parameters for site in plan.sites}
    small, large = sorted(sizes, key=sizes.__getitem__)
    assert sizes[small] < sizes[large]
    kept = within_budget(plan, sizes[large])
    assert [site.key for site in kept.sites] == [small]
    assert kept.skipped[-1].reason == f"over the budget of {sizes[large]:,} extra parameters"
    scored = within_budget(plan, sizes[large], {small: 1e-6, large: 1.0})
    assert [site.key for site in scored.sites] == [large]
    assert within_budget(plan, sum(sizes.values())).sites == plan.sites
    with pytest.raises(PlanError, match=r"got 1 parameters, and the smallest branch"):
        within_budget(plan, 1)
    with pytest.raises(PlanError, match="has none: the scores were made for other sites"):
        within_budget(plan, 10**6, {small: 1.0})


def test_the_best_scored_sites_stay() -> None:
    _, plan, _ = plan_of()
    keys = [site.key for site in plan.sites]
    kept = best_scored(plan, {keys[0]: 0.1, keys[1]: 0.9}, 1)
    assert [site.key for site in kept.sites] == [keys[1]]
    with pytest.raises(PlanError, match="number of sites from 1 to 2, got 3"):
        best_scored(plan, dict.fromkeys(keys, 1.0), 3)


@pytest.mark.parametrize("name", ["linears", "products", "forces"])
def test_low_rank_branches_have_few_parameters_and_go_without_a_trace(name: str) -> None:
    net, plan, inputs = plan_of(name)
    low = with_rank(plan, 1)
    assert all(a.extra_parameters < b.extra_parameters for a, b in zip(low.sites, plan.sites, strict=True))
    expected = net.eval()(*inputs)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    relaxation = surgeon.relax(net, low, init_scale=1.0)
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
    relaxation = surgeon.relax(net, restricted, init_scale=1.0)
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
    with pytest.raises(PlanError, match="either blocks or a rank"):
        surgeon.relax(net, with_rank(with_blocks(plan, [(1, 1)]), 1))
