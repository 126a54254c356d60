"""The overhead benchmark: its networks have sites, its naive penalty is the paper's formula, its table is complete."""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.penalty import Commutator
from surgeon.finding.forms import form_of, row_representations, rows_of
from surgeon.plan import Plan
from tests.formulas import defect_rows, norm_penalty_rows

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def overhead() -> Iterator[ModuleType]:
    """The benchmark as a module; what it imports by bare names is forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
        yield importlib.import_module("overhead")
    folders = [ROOT / "benchmarks", ROOT / "examples"]
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and any(Path(file).is_relative_to(folder) for folder in folders):
            del sys.modules[name]


def small(overhead: ModuleType, include: tuple[str, ...] = ()) -> Any:
    """A SEGNN that is small, with the loss of the benchmark's own."""
    networks = sys.modules["overhead_networks"]
    case = networks.segnn("cpu", 4, 1, include)
    case.batch.update({name: values[:3] for name, values in case.batch.items()})
    return case


@functools.cache
def plan_of(overhead: ModuleType, include: tuple[str, ...] = ()) -> Plan:
    """Return the sites of the small SEGNN, which are those of all weights."""
    plan: Plan = overhead.plan_of(small(overhead, include))
    return plan


def test_every_variant_trains_its_own_copy(overhead: ModuleType) -> None:
    case = small(overhead)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    row = overhead.times(case, list(overhead.VARIANTS), 4, "cpu")
    assert set(row["ratios"]) == set(overhead.VARIANTS)
    assert row["ratios"]["plain"]["median"] == 1
    assert row["sites"] > 0
    assert row["extra_parameters"] > 0
    assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())


def test_the_papers_placement_takes_some_of_the_sites(overhead: ModuleType) -> None:
    everywhere = plan_of(overhead)
    paper = plan_of(overhead, sys.modules["overhead_networks"].PAPER)
    assert 0 < len(paper.sites) < len(everywhere.sites)
    assert all("update_layer_1" in site.key for site in paper.sites)


def penalties(overhead: ModuleType, scale: float) -> tuple[Tensor, Tensor]:
    """The naive penalty of one forward, and the same from the library's row forms; W drawn with this scale."""
    case = small(overhead)
    plan = plan_of(overhead)
    model = copy.deepcopy(case.model).double().train()
    batch = {name: value.double() for name, value in case.batch.items()}
    relaxation = surgeon.relax(model, plan, dense=True, init_scale=scale)
    expected = []
    with overhead.captured(relaxation) as rows:
        case.loss(model, batch)
    assert set(rows) == {site.key for site in plan.sites}
    for site in plan.sites:
        weight = relaxation.branches[site.key].matrix
        expected.append(norm_penalty_rows(weight, rows[site.key]))
        expected.append(defect_rows(Generators(*row_representations(site)), weight, rows[site.key]))
    return overhead.naive_penalty(relaxation, rows), torch.stack(expected).sum()


class Generators(Commutator):
    """The commutators with the generators of the Lie algebra alone: the paper has no other elements."""

    def __init__(self, rho_out: Any, rho_in: Any) -> None:
        super().__init__(rho_out, rho_in)
        self._pairs = [(rho_out.generators(), rho_in.generators())]


def test_the_naive_penalty_is_the_papers_formula(overhead: ModuleType) -> None:
    torch.manual_seed(0)
    naive, expected = penalties(overhead, 1.0)
    assert torch.allclose(naive, expected, rtol=1e-9)


def test_the_naive_penalty_reaches_w(overhead: ModuleType) -> None:
    torch.manual_seed(0)
    one, two = penalties(overhead, 1.0)[0], penalties(overhead, 2.0)[0]
    assert not torch.allclose(one, two, rtol=0.1)


def test_the_captured_rows_are_the_branches_inputs_and_hooks_are_removed(overhead: ModuleType) -> None:
    case = small(overhead)
    model = copy.deepcopy(case.model).train()
    relaxation = surgeon.relax(model, plan_of(overhead), dense=True)
    site = relaxation.plan.sites[0]
    seen: list[Tensor] = []
    handle = relaxation.branches[site.key].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with overhead.captured(relaxation) as rows:
        case.loss(model, case.batch)
    handle.remove()
    assert torch.equal(rows[site.key], rows_of(form_of(site), seen[0]))
    assert not rows[site.key].requires_grad
    assert not any(branch._forward_pre_hooks for branch in relaxation.branches.values())


def test_low_ranks_are_given_only_where_they_save(overhead: ModuleType) -> None:
    plan = plan_of(overhead)
    ranked = overhead.with_rank(plan, 1)
    assert sum(site.extra_parameters for site in ranked.sites) < sum(site.extra_parameters for site in plan.sites)
    huge = overhead.with_rank(plan, 10**6)
    assert [site.rank for site in huge.sites] == [site.rank for site in plan.sites]


def test_dense_layers_are_merged_on_request_alone(overhead: ModuleType) -> None:
    networks = sys.modules["overhead_networks"]
    kind = networks.VNPointNet
    case = networks.point_cloud("cpu", lambda classes: kind(classes, base=3, neighbours=4), 2, 8)
    relaxation = surgeon.relax(copy.deepcopy(case.model).train(), overhead.plan_of(case), dense=True)
    assert not any(branch.merged for branch in relaxation.branches.values())
    overhead.merge(relaxation)
    merged = [module for module in relaxation.model.modules() if "forward" in vars(module)]
    assert merged
    assert all(type(module) is nn.Linear for module in merged)


def test_what_merging_saves_is_not_the_penaltys(overhead: ModuleType) -> None:
    medians = {"plain": 1.0, "branch": 2.0, "branch merged": 1.5, "naive rows": 6.0, "exact": 2.5, "default": 1.5}
    assert overhead.cheaper_by(medians) == {"exact": 4.0, "default": None}
    assert overhead.cheaper_by(medians | {"branch merged": 2.0}) == {"exact": 8.0, "default": None}


def test_what_lives_at_once_is_counted(overhead: ModuleType) -> None:
    mebibyte = 2**20 // 4

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(8 * mebibyte)

    def together() -> None:
        [torch.ones(8 * mebibyte) for _ in range(3)]

    assert overhead.allocated_mebibytes(one_after_the_other, 2) == pytest.approx(8, rel=0.01)
    assert overhead.allocated_mebibytes(together, 2) == pytest.approx(24, rel=0.01)
