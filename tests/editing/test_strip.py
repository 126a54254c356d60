"""Stripping leaves the original architecture, and folding changes the function by exactly what it reports."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.editing.branch import branches_of
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import SurgeryError, UsageError
from tests import nets
from tests.nets import o3

pytestmark = pytest.mark.e3nn

EXACT = 1e-12


@pytest.mark.parametrize("via", ["itself", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", nets.NETS)
def test_drop_gives_back_the_original_in_bytes(name: str, via: str) -> None:
    twin, net, relaxation, inputs = nets.relaxed(name, scale=2.0)
    relaxation.set_theta(0.7)
    net(*inputs)
    if via == "deepcopy":
        net = copy.deepcopy(net)
    if via == "pickle":
        net = pickle.loads(pickle.dumps(net))
    assert nets.traces(net) != nets.traces(twin)
    records = strip(net)
    assert nets.state(net) == nets.state(twin)
    assert nets.traces(net) == nets.traces(twin)
    assert torch.equal(net(*inputs), twin(*inputs))
    assert [record.note for record in records] == ["dropped"] * len(records)
    assert surgeon.certify(twin, net, lambda model: model(*inputs)).passed
    for record, branch in zip(records, relaxation.branches.values(), strict=True):
        assert record.norm == pytest.approx(float(branch.weight.detach().norm()))
        assert record.lost == pytest.approx(0.7 * record.norm)
        assert record.folded == 0.0


@pytest.mark.parametrize("via", ["itself", "deepcopy", "pickle"])
@pytest.mark.parametrize("name", nets.NETS)
def test_a_network_relaxed_to_drop_can_still_be_folded(name: str, via: str) -> None:
    """What can be folded is found out then, with the branch in place and weights that have changed since."""
    twin, first, usual, _ = nets.relaxed(name, mode="fold")
    second, before, results = copy.deepcopy(twin), twin.state_dict(), []
    late = surgeon.relax(second, usual.plan, dense=True, mode="drop", init_scale=1.0)
    for net, relaxation in ((first, usual), (second, late)):
        relaxation.set_theta(0.3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
        if via == "deepcopy":
            net = copy.deepcopy(net)
        if via == "pickle":
            net = pickle.loads(pickle.dumps(net))
        strip(net, "fold")
        results.append(net.state_dict())
    assert any(not torch.allclose(results[0][key], 1.5 * before[key]) for key in before)
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=EXACT, atol=EXACT)


def test_a_stripped_model_can_be_relaxed_and_stripped_again() -> None:
    twin, net, relaxation, _ = nets.relaxed("linears")
    strip(relaxation)
    strip(surgeon.relax(net, relaxation.plan, dense=True, init_scale=1.0))
    assert nets.state(net) == nets.state(twin)
    with pytest.raises(SurgeryError, match="stripped already"):
        strip(net)


THETAS = [(0.5, 1.0), (0.3, 0.3), (1.0, 0.0)]


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("name", nets.NETS)
def test_clean_evaluation_is_the_stripped_model(name: str, theta: tuple[float, float]) -> None:
    twin, net, relaxation, inputs = nets.relaxed(name, mode="fold")
    relaxation.set_theta(*theta)
    with relaxation.clean():
        clean = net(*inputs).detach()
    records = strip(relaxation)
    stripped = net(*inputs).detach()
    assert torch.allclose(stripped, clean, rtol=EXACT, atol=EXACT * float(clean.norm()))
    assert nets.traces(net) == nets.traces(twin)
    folds = theta[1] > 0 and any(record.folded for record in records)
    assert torch.equal(stripped, twin(*inputs).detach()) == (not folds)
    assert folds == (theta[1] > 0)


def test_fold_at_theta_parallel_zero_keeps_the_bytes() -> None:
    twin, net, relaxation, _ = nets.relaxed("products", mode="fold")
    relaxation.set_theta(1.0, 0.0)
    records = strip(relaxation)
    assert nets.state(net) == nets.state(twin)
    assert all(record.note.startswith("folded, exact while scalar 0 of y is 1") for record in records)


def maps(net: Any, names: list[str], y: Tensor) -> dict[str, Tensor]:
    dims = {name: o3.Irreps(getattr(net.get_submodule(name), "irreps_in1", None) or "8x0e").dim for name in names}
    return {name: nets.linear_map(net.get_submodule(name), y, dims[name]) for name in names}


@pytest.mark.parametrize("theta", [(0.0, 1.0), (0.6, 0.8)])
@pytest.mark.parametrize("mode", ["fold", "drop"])
def test_the_change_of_each_map_is_what_is_reported_as_lost(mode: str, theta: tuple[float, float]) -> None:
    _, net, relaxation, (_, y) = nets.relaxed("products", mode=mode)
    relaxation.set_theta(theta[0], theta[0] if mode == "drop" else theta[1])
    names = [site.name for site in relaxation.plan.sites]
    # Any attributes with the same constant scalars: the other paths of the product do not change.
    attributes = torch.cat([y[:1, :2], torch.randn(1, 6, dtype=torch.float64)], dim=1)
    before = maps(net, names, attributes)
    records = strip(relaxation)
    after = maps(net, names, attributes)
    for record in records:
        change = float((before[record.name] - after[record.name]).norm())
        assert change == pytest.approx(record.lost, rel=1e-10, abs=EXACT)
    assert max(record.lost for record in records) > (0.1 if theta[0] else -1)


@pytest.mark.parametrize("scalars", [(1.0, 0.7), (1.0, 1.0), (-2.0, 3.5), (0.0, 1e-7), (0.28209479177387814, 0.0)])
def test_products_fold_with_constant_scalars_of_any_value(scalars: tuple[float, float]) -> None:
    with nets.default_dtype(torch.float64):
        op = o3.FullyConnectedTensorProduct("2x0e+2x1o", nets.ATTRIBUTES, "3x0e+2x1o")
    x, y = torch.randn(5, 8, dtype=torch.float64), nets.attributes(5, torch.float64, scalars)
    relaxation = surgeon.relax(op, surgeon.find(op, "O3", x, y), dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    expected = op(x, y).detach()
    (record,) = strip(op)
    assert record.folded > 0.1
    assert record.lost == pytest.approx(0.0, abs=EXACT)
    assert torch.allclose(op(x, y).detach(), expected, rtol=1e-9, atol=1e-9)


def test_products_without_a_constant_scalar_do_not_fold() -> None:
    op = o3.FullyConnectedTensorProduct("2x0e+2x1o", nets.ATTRIBUTES, "3x0e+2x1o").double()
    x, y = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    relaxation = surgeon.relax(op, surgeon.find(op, "O3", x, y), dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.5, 1.0)
    (record,) = strip(op)
    assert (record.note, record.folded) == ("dropped", 0.0)
    assert record.lost == pytest.approx(0.5 * record.norm)


class Skewed(nn.Module):
    """Different blocks of one irrep with a path for some pairs only."""

    def __init__(self) -> None:
        super().__init__()
        self.op = nets.linear_with_missing_paths()

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def test_missing_paths_lose_exactly_their_blocks() -> None:
    with nets.default_dtype(torch.float64):
        net = Skewed()
    x = torch.randn(4, 16, dtype=torch.float64)
    relaxation = surgeon.relax(net, surgeon.find(net, "O3", x), dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(1.0, 1.0)
    before = nets.linear_map(net, None, 16)
    weight = relaxation.branches["op.features"].weight.detach().clone()
    (record,) = strip(relaxation)
    after = nets.linear_map(net, None, 16)
    assert record.lost == pytest.approx(float((before - after).norm()), rel=1e-12)
    assert record.lost == pytest.approx(math.sqrt(record.norm**2 - record.folded**2))
    scalar_block = weight[:3, :2]
    assert torch.allclose(after[:3, :2] - (before[:3, :2] - scalar_block), scalar_block, atol=EXACT)


def restricted(mode: Any) -> Relaxation:
    """A layer whose branch adds to vectors alone, with numbers everywhere else in W."""
    with nets.default_dtype(torch.float64):
        net = o3.Linear("2x0e+2x1o", "2x0e+2x1o")
    plan = surgeon.find(net, "O3", torch.randn(4, 8, dtype=torch.float64))
    site = dataclasses.replace(plan.sites[0], blocks=((1, 1), (0, 1)))
    relaxation = surgeon.relax(net, dataclasses.replace(plan, sites=(site,)), dense=True, mode=mode, init_scale=1.0)
    relaxation.set_theta(0.7, 0.7 if mode == "drop" else 1.0)
    with torch.no_grad():
        relaxation.branches["features"].weight.copy_(torch.randn(8, 8))
    return relaxation


@pytest.mark.parametrize("mode", ["fold", "drop"])
def test_what_a_restricted_branch_does_not_add_is_neither_folded_nor_lost(mode: str) -> None:
    relaxation = restricted(mode)
    net, inside = relaxation.model, relaxation.branches["features"].weight.detach()[2:].clone()
    before = nets.linear_map(net, None, 8)
    (record,) = strip(relaxation)
    after = nets.linear_map(net, None, 8)
    assert record.lost == pytest.approx(float((before - after).norm()), rel=1e-12)
    assert record.norm == pytest.approx(float(inside.norm()))
    assert bool(record.folded) == (mode == "fold")


def test_clean_evaluation_of_a_restricted_branch_is_the_stripped_model() -> None:
    relaxation = restricted("fold")
    net = relaxation.model
    before = nets.linear_map(net, None, 8)
    with relaxation.clean():
        clean = nets.linear_map(net, None, 8)
    strip(relaxation)
    after = nets.linear_map(net, None, 8)
    assert torch.allclose(after, clean, atol=EXACT)
    assert torch.equal(before[:2], after[:2])


def test_the_mode_can_be_chosen_when_stripping() -> None:
    twin, net, relaxation, inputs = nets.relaxed("linears", mode="drop")
    relaxation.set_theta(1.0)
    records = strip(copy.deepcopy(net), mode="fold")
    assert {record.note for record in records} == {"folded"}
    relaxation.mode = "fold"
    records = strip(net, mode="drop")
    assert {record.note for record in records} == {"dropped"}
    assert torch.equal(net(*inputs), twin(*inputs))


def test_an_unknown_mode_changes_nothing() -> None:
    _, net, _, _ = nets.relaxed("linears")
    before = nets.state(net)
    with pytest.raises(UsageError, match="'drop' or 'fold', got 'keep'"):
        strip(net, mode="keep")  # type: ignore[arg-type]
    assert nets.state(net) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_branches_are_refused_and_nothing_changes(bad: float) -> None:
    _, net, relaxation, _ = nets.relaxed("linears", mode="fold")
    relaxation.set_theta(0.0, 1.0)
    with torch.no_grad():
        relaxation.branches["second.features"].weight[0, 0] = bad
    before, count = nets.state(net), len(branches_of(net))
    with pytest.raises(SurgeryError, match="second.features.*nothing was stripped"):
        strip(net)
    assert nets.state(net) == before
    assert len(branches_of(net)) == count


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_rounding_loses_of_a_fold_is_reported(dtype: torch.dtype) -> None:
    op = o3.Linear("8x0e+8x1o", "8x0e+8x1o").to(dtype)
    relaxation = surgeon.relax(op, surgeon.find(op, "O3"), dense=True, mode="fold", init_scale=1e-3)
    relaxation.set_theta(0.0, 1.0)
    (branch,) = relaxation.branches.values()
    twin, wanted = o3.Linear("8x0e+8x1o", "8x0e+8x1o").double(), branch.foldable_part().detach().double()
    twin.load_state_dict({"weight": op.weight.detach().double()}, strict=False)
    before = nets.linear_map(twin, None, 32)
    (record,) = strip(op)
    twin.load_state_dict({"weight": op.weight.detach().double()}, strict=False)
    lost = float((nets.linear_map(twin, None, 32) - before - wanted).norm())
    assert record.lost == pytest.approx(lost, rel=2e-2, abs=1e-6 * record.folded)
    assert (record.lost > 0.5 * record.folded) == (dtype == torch.bfloat16)
    assert record.lost > 0


def test_float32_folds_to_its_own_precision() -> None:
    _, net, relaxation, inputs = nets.relaxed("products", torch.float32, mode="fold")
    relaxation.set_theta(0.0, 1.0)
    expected = net(*inputs).detach()
    strip(relaxation)
    assert (net(*inputs).detach() - expected).norm() < 1e-5 * expected.norm()
    assert net.full.weight.dtype == torch.float32


def test_a_fold_after_loading_weights_needs_theta_to_be_set() -> None:
    _, trained, source, inputs = nets.relaxed("linears", mode="fold")
    source.set_progress(1.0)
    _, net, relaxation, _ = nets.relaxed("linears", mode="fold")
    net.load_state_dict(trained.state_dict())
    before = nets.state(net)
    dropped = copy.deepcopy(net)
    with pytest.raises(SurgeryError, match=r"first.features.*set_progress\(1.0\)"):
        strip(net)
    assert nets.state(net) == before
    assert {record.note for record in strip(dropped, mode="drop")} == {"dropped"}
    relaxation.set_progress(1.0)
    expected = trained(*inputs).detach()
    assert all(record.folded > 0.1 for record in strip(net))
    assert torch.allclose(net(*inputs).detach(), expected, rtol=EXACT, atol=EXACT * float(expected.norm()))
