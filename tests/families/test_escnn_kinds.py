"""escnn's layers for C_n, D_n, SO(2), O(2), SO(3) and O(3): found and sound."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import surgeon
from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import trivial
from surgeon.errors import PlanError
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon.testing.contract import BROKEN
from surgeon.testing.soundness import THETA, Model, check_plan
from surgeon_adapters.escnn.adapter import adapter
from tests.families.escnn_kinds import KINDS, model_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

# escnn computes its bases in float32
ROUNDING = 1e-5


def plan_of(model: Model, group: str, **options: Any) -> surgeon.Plan:
    return surgeon.find(model.module, group, *model.inputs, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_both_layers_are_found_and_a_branch_breaks_what_they_keep(kind: str) -> None:
    model, name = model_of(kind), KINDS[kind][0]
    group = parse_group(name)
    elements = group.elements if group.finite else group.sample(2, torch.Generator().manual_seed(0))
    assert model.error(elements) < ROUNDING
    plan = plan_of(model, name)
    assert [site.name for site in plan.sites] == ["first", "second"]
    assert all(site.verified and site.residual is not None and site.residual < ROUNDING for site in plan.sites)
    check_plan(model, plan)


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_whose_kernel_is_steerable_breaks_nothing(kind: str) -> None:
    """The twin of the test before: the same sites and theta, with the layer's own kernel instead of a random W."""
    model, group = model_of(kind), parse_group(KINDS[kind][0])
    elements = group.elements if group.finite else group.sample(2, torch.Generator().manual_seed(0))
    before = model.run().detach()
    relaxation = surgeon.relax(model.module, plan_of(model, KINDS[kind][0]), dense=True, init_scale=1.0)
    relaxation.set_theta(THETA)
    assert model.error(elements) > BROKEN
    for site in relaxation.plan.sites:
        kernel = model.module.get_submodule(site.name).expand_parameters()[0]
        relaxation.branches[site.key].weight.data.copy_(kernel)
    assert model.error(elements) < ROUNDING
    assert relative_difference(model.run().detach(), before) > BROKEN


@pytest.mark.parametrize("kind", ["so2-images", "o2-images", "so3-volumes", "o3-volumes"])
def test_kernels_of_continuous_groups_are_verified_under_quarter_turns(kind: str) -> None:
    model, name = model_of(kind), kind.split("-")[0].upper()
    plan = plan_of(model, name)
    assert [site.name for site in plan.sites] == ["first", "second"]
    assert all(site.verified for site in plan.sites)
    assert sum("discretisation" in note for note in plan.notes) == 2


@pytest.mark.parametrize(
    ("kind", "group"),
    [("c8-images", "C8"), ("d4-images", "D2"), ("o2-images", "C4"), ("o2-vectors", "D3"), ("o3-volumes", "OCTA")],
)
def test_a_network_may_be_relaxed_under_a_subgroup(kind: str, group: str) -> None:
    plan = plan_of(model_of(kind), group)
    assert [site.name for site in plan.sites] == ["first", "second"]


@pytest.mark.parametrize(
    ("kind", "group"),
    [
        ("c4-images", "D4"),
        ("so2-vectors", "O2"),
        ("so3-volumes", "C4"),
        ("so3-volumes", "OCTAH"),
        ("c4-volumes", "OCTA"),
        ("so2-volumes", "tests.families.escnn_kinds:about_x"),
        ("d5-vectors", "C4"),
    ],
)
def test_a_larger_or_another_group_is_refused(kind: str, group: str) -> None:
    with pytest.raises(PlanError, match="which does not act as"):
        plan_of(model_of(kind), group)


class AllScalars(Adapter):
    name, groups = "all-scalars", ("D4", "OCTA", "O2")

    def propose(self, module: torch.nn.Module, group: Group) -> Proposal | Refusal | None:
        right = adapter.propose(module, group)
        if not isinstance(right, Proposal) or right.rho_in.is_trivial:
            return right if right is None else Refusal("left out", "excluded")
        labels = (trivial(group, each.dimension) for each in (right.rho_in, right.rho_out))
        return Proposal(
            "input", right.kind, *labels, path_in=("tensor",), path_out=("tensor",), axes_in=right.axes_in,
            axes_out=right.axes_out, convolution=right.convolution,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["d4-images", "so3-volumes", "o2-vectors"])
def test_wrong_labels_are_refused(kind: str) -> None:
    with pytest.raises(PlanError):
        plan_of(model_of(kind), KINDS[kind][0], adapters={"all-scalars": AllScalars()})
