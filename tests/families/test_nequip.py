"""NequIP with forces, from nequip."""

from __future__ import annotations

import warnings

import pytest

from tests.families.cases import FamilyCase, keys

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nequip", reason="nequip is not installed: make test-nequip")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=[(2, True, 2), (2, False, 3), (1, True, 3)], ids=str)
def case(request: pytest.FixtureRequest) -> FamilyCase:
    from tests.families.nequip_models import potential

    return potential(*request.param)


def test_annotation_and_measurement_agree(case: FamilyCase) -> None:
    annotated, measured, both = case.annotated(), case.find(adapters={}), case.find()
    assert keys(annotated) == keys(measured) == keys(both)
    assert len(both.sites) >= 3
    assert {site.source for site in both.sites} == {"both"}
    assert not both.notes
    assert not [entry for entry in both.audit if entry.coverage in ("unexplained", "not equivariant")]


def test_the_plan_is_sound(case: FamilyCase) -> None:
    case.check(case.find(adapters={}))
