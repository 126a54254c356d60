"""What is said to be in W is what was put there."""

from __future__ import annotations

import pytest
import torch

from surgeon.algebra.intertwiners import average
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.spectrum import VALUES, branch_contents
from surgeon.finding.find import find
from tests.tiny import Net, TinyTask

KEY = "first.features"


def relaxed(hidden: int = 2) -> Relaxation:
    net, batch = Net(hidden), next(TinyTask().batches("validation", 0))
    plan = find(net, "O3", batch, forward=lambda model, x: model(x["scalars"], x["vectors"]))
    return relax(net, plan, dense=True, init_scale=1.0)


@torch.no_grad()
def test_blocks_have_the_singular_values_that_they_were_built_of() -> None:
    relaxation = relaxed()
    weight = relaxation.branches[KEY].weight
    weight.zero_()
    weight[0, 0], weight[1, 1] = 3.0, 2.0  # 0e -> 0e
    weight[2:5, 0] = torch.tensor([0.0, 4.0, 3.0])  # 0e -> 1o: a vector of norm 5
    content = next(each for each in branch_contents(relaxation) if each.site == KEY)
    assert content.spectrum == {"0e -> 0e": [3.0, 2.0], "0e -> 1o": [5.0, 0.0]}
    assert content.norm == pytest.approx(38**0.5, rel=1e-3)
    assert content.equivariant == pytest.approx(13 / 38, rel=1e-3)


@torch.no_grad()
def test_an_intertwiner_is_all_equivariant_and_a_random_matrix_as_much_as_dimensions_say() -> None:
    torch.manual_seed(0)
    relaxation = relaxed(hidden=40)
    (site,) = [site for site in relaxation.plan.sites if site.key == KEY]
    branch = relaxation.branches[KEY]
    found = next(each for each in branch_contents(relaxation) if each.site == KEY)
    assert found.random == pytest.approx((2 * 40 + 2 * 40) / (8 * 160), rel=1e-3)  # Hom: 0e to 0e and 1o to 1o
    assert found.equivariant == pytest.approx(found.random, rel=0.5)
    branch.weight.copy_(average(branch.weight, site.rho_out, site.rho_in))
    projected = next(each for each in branch_contents(relaxation) if each.site == KEY)
    assert projected.equivariant == 1.0
    assert set(projected.spectrum) == {"0e -> 0e", "1o -> 1o"}


@torch.no_grad()
def test_w_that_is_0_has_no_share() -> None:
    relaxation = relaxed()
    relaxation.branches[KEY].weight.zero_()
    content = next(each for each in branch_contents(relaxation) if each.site == KEY)
    assert (content.equivariant, content.norm, content.spectrum) == (None, 0.0, {})


def test_of_many_values_the_largest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    relaxation = relaxed()
    monkeypatch.setattr("surgeon.editing.spectrum.VALUES", 6)
    assert VALUES > 6
    whole = branch_contents(relaxation)
    assert {len(values) for each in whole for values in each.spectrum.values()} == {1}
