"""MACE with forces, from mace-torch: scripted layers of e3nn 0.4.4 and eager ones."""

from __future__ import annotations

import warnings

import pytest
import torch

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.support.copies import copied
from tests.families.cases import FamilyCase, keys

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

SITES = {
    "interactions.0.linear.features",
    "interactions.0.skip_tp.x",
    "interactions.1.linear_up.features",
    "interactions.1.linear.features",
    "interactions.1.skip_tp.x",
    "products.0.linear.features",
    "readouts.0.linear.features",
}


@pytest.fixture(params=[True, False], ids=["scripted", "eager"])
def case(request: pytest.FixtureRequest) -> FamilyCase:
    from tests.families.mace_models import potential

    return potential(scripted=request.param)


def test_annotation_and_measurement_agree(case: FamilyCase) -> None:
    annotated, measured, both = case.annotated(), case.find(adapters={}), case.find()
    assert keys(annotated) == keys(measured) == keys(both) == SITES
    assert {site.source for site in measured.sites} == {"measurement"}
    # What enters the first skip connection is invariant, so its vectors are 0: only the sum they enter shows them.
    assert {site.name for site in both.sites if site.source != "both"} <= {"interactions.0.skip_tp"}
    assert not both.notes
    assert not [entry for entry in both.audit if entry.coverage in ("unexplained", "not equivariant")]


def test_the_plan_is_sound(case: FamilyCase) -> None:
    case.check(case.find(adapters={}))


def test_other_elements_and_parities_too(case: FamilyCase) -> None:
    from tests.families.mace_models import potential

    larger = potential(scripted=False, hidden="4x0e+4x1o+4x2e", max_ell=3)
    plan = larger.find(adapters={})
    assert keys(plan) == keys(larger.annotated())
    larger.check(plan)


def test_a_lie_about_parity_is_noticed(case: FamilyCase) -> None:
    """Forces that are called axial vectors do not transform so."""
    group = parse_group("O3")
    elements = group.sample(1, torch.Generator().manual_seed(0), 1)
    assert case.model().error(elements) < 1e-9
    with pytest.raises(surgeon.errors.CheckFailedError, match="under 'inversion'"):
        surgeon.find(
            case.module,
            "O3",
            case.batch,
            forward=case.forward,
            act=case.act,
            act_output=lambda g, out: case.act_output(g * torch.linalg.det(g), out),
            adapters={},
        )


def test_a_copy_of_torchscript_has_the_same_code() -> None:
    """Parts of a tensor product that only raise are printed in other words when they were copied."""
    from tests.families.mace_models import potential

    case = potential(True, "4x0e+4x1o")
    assert surgeon.certify(case.module, copied(case.module), lambda model: case.forward(model, case.batch)).passed
