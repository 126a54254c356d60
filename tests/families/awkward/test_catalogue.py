"""Every awkward model is relaxed correctly, or refused with the right reason."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import surgeon
from surgeon.algebra.equivariance import relative_difference
from surgeon.editing.insert import relax
from surgeon.editing.strip import strip
from surgeon.errors import SurgeonError
from surgeon.finding.audit import acting
from surgeon.plan import Plan
from surgeon.support.modes import default_dtype
from surgeon.testing.soundness import Model, check_plan
from tests.families.awkward import (
    bases,
    cartesian,
    forwards,
    frames,
    functions,
    groups,
    layouts,
    multivectors,
    negatives,
    numbers,
    operations,
    pseudotensors,
    routes,
    sampled,
    spectral,
    structures,
    symmetries,
    weights,
    zeros,
)
from tests.families.awkward.case import Case

THEMES = (
    forwards,
    frames,
    functions,
    weights,
    layouts,
    structures,
    operations,
    symmetries,
    pseudotensors,
    multivectors,
    negatives,
    zeros,
    cartesian,
    sampled,
    groups,
    numbers,
    spectral,
    bases,
    routes,
)
CASES = tuple(case for theme in THEMES for case in theme.CASES)


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        return case.build().eval()


def find(case: Case, module: nn.Module) -> Plan:
    return surgeon.find(module, case.group, *case.inputs(), act=case.act, act_output=case.act_output, adapters={})


@pytest.fixture(autouse=True)
def _double() -> None:
    with default_dtype(torch.float64):
        yield


@pytest.mark.parametrize("case", [case for case in CASES if not case.error], ids=lambda case: case.name)
def test_relaxed(case: Case) -> None:
    module, inputs = build(case), case.inputs()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    plan = find(case, module)
    assert {site.key for site in plan.sites} == case.sites
    audit = {entry.parameter: entry for entry in plan.audit}
    assert audit.keys() == dict(module.named_parameters()).keys()
    assert not [entry for entry in plan.audit if entry.coverage == "unexplained" and entry.parameter not in case.reason]
    for name, coverage in case.audit.items():
        assert audit[name].coverage == coverage, audit[name]
    for name, pattern in case.reason.items():
        assert re.search(pattern, audit[name].reason), audit[name]
    if case.sound:
        check_plan(Model(module, inputs, case.symmetry), plan)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert not module.training


@pytest.mark.parametrize("case", [case for case in CASES if case.error], ids=lambda case: case.name)
def test_refused(case: Case) -> None:
    with pytest.raises(SurgeonError, match=case.error):
        find(case, build(case))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("only scales", (20, 4, 0)),
        ("TorchScript", (16, 0, 16)),
        ("substituted weight", (32, 16, 0)),
        ("constants of the forward", (20, 4, 0)),
        ("supplied", (16, 0, 0)),
    ],
)
def test_equivariant_weights_without_a_site_are_counted(name: str, counts: tuple[int, int, int]) -> None:
    """Those of all sites included; what is only added to an invariant is none, nor is what makes invariants."""
    case = next(case for case in CASES if case.name == name)
    assert acting(find(case, build(case)).audit) == counts


@pytest.mark.parametrize("training", [False, True])
def test_keys_of_eval_mode_do_not_matter(training: bool) -> None:
    case = next(case for case in CASES if case.name == "keys of one mode")
    module = build(case).train(training)
    keys = list(module.state_dict())
    check_plan(Model(module, case.inputs(), case.symmetry), find(case, module))
    assert list(module.state_dict()) == keys
    assert module.training == training


@pytest.mark.parametrize(
    "name",
    [
        "phases",
        "complex inside",
        "ring",
        "corners",
        "samples on a circle",
        "spectral layers",
        "Dirac spinors",
        "structured batch",
        "monomials",
        "complex harmonics",
        "mapped layer",
        "forces by torch.func.jacrev",
        "forces by torch.func.jvp",
        "complex harmonics of real vectors",
    ],
)
def test_what_can_be_folded_is_folded_without_loss(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    module, inputs = build(case), case.inputs()
    relaxation = relax(module, find(case, module), dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 0.3)
    expected = module(*inputs)
    records = strip(module, "fold")
    assert all(record.folded > 0.01 and record.lost <= 1e-12 * record.norm for record in records)
    assert relative_difference(module(*inputs), expected) <= 1e-12


def test_of_a_product_the_factor_is_taken_that_the_group_moves() -> None:
    case = next(case for case in CASES if case.name == "elements")
    (site,) = find(case, build(case)).sites
    assert not site.rho_in.is_trivial


def test_names_are_distinct_and_the_catalogue_is_long() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 25
