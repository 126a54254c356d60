"""What is recorded of the branches in an evaluation is what they do there, and looking changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.intertwiners import average
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.use import CALLS, ROWS, watched
from surgeon.finding.find import find
from surgeon.support.modes import in_evaluation_mode
from tests.tiny import Net, TinyTask

KEY = "first.features"


@pytest.fixture
def relaxation() -> Relaxation:
    """A network with random branches at theta = 0.7."""
    net, batch = Net(), next(TinyTask().batches("validation", 0))
    plan = find(net, "O3", batch, forward=lambda model, x: model(x["scalars"], x["vectors"]))
    relaxation = relax(net, plan, dense=True, init_scale=1.0)
    relaxation.set_theta(0.7)
    return relaxation


def inputs(rows: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 2), torch.randn(rows, 2, 3)


def seen(relaxation: Relaxation, *batches: tuple[Tensor, Tensor]) -> dict[str, dict[str, float | None]]:
    """Return what is recorded of an evaluation on batches, by site."""
    with in_evaluation_mode(relaxation.model), watched(relaxation) as use:
        for batch in batches:
            relaxation.model(*batch)
    keys = [site.key for site in relaxation.plan.sites]
    return {name: dict(zip(keys, values, strict=True)) for name, values in use.ratios().items()}


def norm(value: Tensor) -> float:
    return float(value.double().norm())


def lie_error(op: nn.Module, relaxation: Relaxation, x: Tensor) -> float:
    """Return |f(drho_in x) - drho_out f(x)| / |f(x)| by running the relaxed op, which is linear, itself."""
    (site,) = [site for site in relaxation.plan.sites if site.key == KEY]
    moved = [op(part) for part in site.rho_in.generators().apply(x.double()).float()]
    elements = [op(part) for part in site.rho_in.element_actions().apply(x.double()).float()]
    turned = [*site.rho_out.generators().apply(op(x).double()), *site.rho_out.element_actions().apply(op(x).double())]
    return norm(torch.stack([a - b for a, b in zip([*moved, *elements], turned, strict=True)])) / norm(op(x))


@torch.no_grad()
def test_what_is_recorded_is_what_running_the_ops_shows(relaxation: Relaxation) -> None:
    op, branch = relaxation.model.get_submodule("first"), relaxation.branches[KEY]
    scalars, vectors = inputs()
    x = torch.cat([scalars, vectors.flatten(1)], 1)
    found = seen(relaxation, (scalars, vectors))
    with relaxation.clean():
        own = op(x)
    assert found["share"][KEY] == pytest.approx(norm(x @ branch.weight.T) / norm(own), rel=1e-3)
    expected = lie_error(op, relaxation, x)
    assert found["lie"][KEY] == pytest.approx(expected, rel=1e-3)
    assert expected > 0.1


@torch.no_grad()
def test_an_intertwiner_has_a_share_but_no_lie_error(relaxation: Relaxation) -> None:
    sites = {site.key: site for site in relaxation.plan.sites}
    batch = inputs()
    assert all(value is not None and value > 0.1 for value in seen(relaxation, batch)["lie"].values())
    for key, branch in relaxation.branches.items():
        branch.weight.copy_(average(branch.weight.double(), sites[key].rho_out, sites[key].rho_in))
    found = seen(relaxation, batch)
    assert all(value is not None and value < 1e-6 for value in found["lie"].values())
    assert all(value is not None and value > 0.01 for value in found["share"].values())


def test_theta_scales_the_error_and_not_the_share(relaxation: Relaxation) -> None:
    batch = inputs()
    before = seen(relaxation, batch)
    relaxation.set_theta(0.0)
    after = seen(relaxation, batch)
    assert after["share"][KEY] == before["share"][KEY]
    assert set(after["lie"].values()) == {0.0}


def test_looking_changes_neither_results_nor_random_numbers_nor_what_training_records(relaxation: Relaxation) -> None:
    batch, hooks = inputs(), [len(branch._forward_hooks) for branch in relaxation.branches.values()]
    with in_evaluation_mode(relaxation.model):
        expected = relaxation.model(*batch)
    state = torch.get_rng_state()
    with in_evaluation_mode(relaxation.model), watched(relaxation):
        assert torch.equal(relaxation.model(*batch), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(branch._forward_hooks) for branch in relaxation.branches.values()] == hooks
    assert all(branch.recorded.count == 0 for branch in relaxation.branches.values())


def test_no_more_than_a_few_rows_of_the_first_calls_are_looked_at(relaxation: Relaxation) -> None:
    batches = [inputs() for _ in range(CALLS)]
    assert seen(relaxation, *batches, inputs()) == seen(relaxation, *batches) != seen(relaxation, batches[0])
    scalars, vectors = inputs(8 * ROWS)
    many, few = seen(relaxation, (scalars, vectors)), seen(relaxation, (scalars[:ROWS], vectors[:ROWS]))
    assert many != few
    assert many["share"][KEY] == pytest.approx(few["share"][KEY], rel=0.5)


def test_a_site_that_nothing_reached_has_no_numbers(relaxation: Relaxation) -> None:
    assert set(seen(relaxation)["share"].values()) == {None}
