"""Steerable networks, from escnn: C4 on images, SO(2) without a grid, SO(2) on images by annotation."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

import surgeon
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.finding.annotated_ops import INVARIANT
from surgeon.testing.soundness import Model, check_plan
from tests.families.cases import FamilyCase, keys

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def build(name: str) -> FamilyCase:
    from tests.families import escnn_models

    case: FamilyCase = getattr(escnn_models, name)()
    return case


@pytest.mark.parametrize("name", ["c4_images", "so2_vectors"])
def test_annotation_and_measurement_agree(name: str) -> None:
    case = build(name)
    annotated, measured, both = case.annotated(), case.find(adapters={}), case.find()
    assert keys(annotated) == keys(measured) == keys(both)
    assert {site.source for site in both.sites} == {"both"}
    assert not both.notes
    assert not [entry for entry in both.audit if entry.coverage in ("unexplained", "not equivariant")]


@pytest.mark.parametrize("name", ["c4_images", "so2_vectors"])
def test_the_plan_is_sound(name: str) -> None:
    case = build(name)
    case.check(case.find(adapters={}))


def test_the_mode_and_its_caches_survive() -> None:
    case = build("c4_images")
    before = {key: value.clone() for key, value in case.module.state_dict().items()}
    output = case.forward(case.module, case.batch)
    case.find(adapters={})
    after = case.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(case.forward(case.module, case.batch), output)


def test_images_under_all_rotations_are_annotated() -> None:
    case = build("so2_images")
    plan = case.annotated()
    assert keys(plan) == {"first.input.tensor", "second.input.tensor", "last.input.tensor"}
    assert all(site.verified and site.source == "annotation" for site in plan.sites)
    assert sum("discretisation" in note for note in plan.notes) == 2
    output = case.forward(case.module, case.batch)
    relaxation = surgeon.relax(case.module, plan, dense=True, init_scale=1.0)
    assert torch.equal(case.forward(case.module, case.batch), output)
    relaxation.set_theta(0.1)
    case.module.train()
    assert not torch.allclose(case.forward(case.module, case.batch), output)
    assert float(relaxation.penalty().detach()) > 0
    surgeon.strip(case.module)
    assert torch.equal(case.forward(case.module.eval(), case.batch), output)


def test_turning_by_quarters_only_is_no_action_of_all_rotations() -> None:
    with pytest.raises(TaskError, match="action of SO2"):
        build("so2_images").find()


@pytest.mark.parametrize("annotated", [True, False])
def test_kernels_between_scalar_fields_are_free_only_if_they_have_one_point(annotated: bool) -> None:
    from escnn import gspaces

    from tests.families.escnn_models import Scalars, turn

    torch.manual_seed(0)
    # Layers of escnn share their bases with those of other networks.
    model = copy.deepcopy(Scalars(gspaces.rot2dOnR2(4))).double().eval()
    x = torch.randn(2, 1, 7, 7, dtype=torch.float64)
    options = {} if annotated else {"adapters": {}}
    plan = surgeon.find(model, "C4", x, act=turn, act_output=lambda g, y: y, **options)
    assert [(site.name, site.shape) for site in plan.sites] == [("wide", (3, 1, 3, 3))]
    assert {entry.reason for entry in plan.audit if entry.parameter == "narrow.weights"} == {INVARIANT}
    check_plan(Model(model, (x,), Symmetry(parse_group("C4"), turn, lambda g, y: y)), plan)
