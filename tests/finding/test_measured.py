"""What is measured in networks without annotation: finite groups, and the guards that keep false sites out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import NotASymmetryError, NothingToRelaxError, SurgeonError
from tests.families.awkward.frames import AllFrames

QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


class Net(nn.Module):
    """Vectors (n, d, 3) to an invariant; ``chiral`` adds what commutes with rotations of the plane only."""

    def __init__(self, chiral: bool = False, size: int = 2) -> None:
        super().__init__()
        self.chiral = chiral
        self.lift, self.mix, self.other = (nn.Linear(n, 4, bias=False) for n in (3, 4, 4))
        self.head = nn.Linear(4, 1)
        assert size == 2 or not chiral

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        h = h * h.norm(dim=-2, keepdim=True)
        turned = QUARTER.to(x) @ self.other(h) if self.chiral else self.other(h)
        return self.head((self.mix(h) + turned).square().sum(-2))


def find(net: nn.Module, group: str, x: Tensor | None = None, spoil: Any = None) -> surgeon.Plan:
    size = parse_group(group).vector_dimension
    x = torch.randn(12, size, 3) if x is None else x
    return surgeon.find(net, group, x, act=lambda g, x: g.to(x) @ x, act_output=spoil or (lambda g, y: y))


@pytest.mark.parametrize("group", ["C3", "D3", "D6", "OCTAH"])
def test_layers_on_vectors_are_sites_of_finite_groups(group: str) -> None:
    plan = find(Net(), group)
    assert [site.name for site in plan.sites] == ["lift", "mix", "other"]
    assert all(site.residual is not None and site.residual < 1e-9 for site in plan.sites)


@pytest.mark.parametrize("group", ["D2", "D3", "D6"])
def test_what_commutes_with_rotations_alone_is_no_site_of_a_dihedral_group(group: str) -> None:
    cyclic = group.replace("D", "C")
    assert {site.name for site in find(Net(chiral=True), cyclic).sites} == {"lift", "mix", "other"}
    with pytest.raises(NotASymmetryError, match=f"under 'reflection'.*choose {cyclic}"):
        find(Net(chiral=True), group)


class OnlyAlong(nn.Module):
    """Equivariant on multiples of the positions, whatever its weights; on other features it turns by a quarter."""

    def __init__(self, along: bool) -> None:
        super().__init__()
        self.along, self.left, self.right = along, *(nn.Parameter(torch.randn(4, 4) / 2) for _ in range(2))

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        u = pos / pos.norm(dim=1, keepdim=True)
        rest = x - u * (u * x).sum(1, keepdim=True)
        return x @ self.left + (QUARTER.to(x) @ rest if self.along else rest) @ self.right


class Guarded(nn.Module):
    def __init__(self, along: bool) -> None:
        super().__init__()
        self.lift, self.op, self.head = nn.Parameter(torch.randn(4)), OnlyAlong(along), nn.Linear(4, 1)

    def forward(self, pos: Tensor) -> Tensor:
        h = pos * self.lift * pos.norm(dim=1, keepdim=True)
        return self.head(self.op(h, pos).square().sum(1))


@pytest.mark.parametrize("group", ["O2", "D2", "D3", "D6"])
def test_an_op_that_is_equivariant_on_the_data_alone_is_no_site(group: str) -> None:
    x = torch.randn(12, 2, 1)
    assert [site.name for site in find(Guarded(along=False), group, x).sites] == ["op"]
    for starts_at_zero in (False, True):  # there, only changed weights show it
        net = Guarded(along=True)
        if starts_at_zero:
            nn.init.zeros_(net.op.right)
        with pytest.raises(SurgeonError, match="not equivariant for all weights as measured"):
            find(net, group, x)


def test_an_output_that_is_not_finite_under_some_element_is_not_symmetric() -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return torch.where(x[:1, 0, :1] == POINTS[0, 0, 0].to(x), y, torch.nan)

    with pytest.raises(NotASymmetryError, match="deviate by inf"):
        find(Fails(), "D3", POINTS.clone())


POINTS = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0))


class Orthogonal(nn.Module):
    """A dense layer along vectors that happens to commute with rotations with its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.dense = nn.Linear(3, 4, bias=False), nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(4, 1)
        with torch.no_grad():
            self.dense.weight.copy_(2 * torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dense(self.mix(x).mT).square().sum(-1))


def test_what_holds_for_the_own_weights_alone_is_no_site() -> None:
    plan = find(Orthogonal(), "D6")
    assert [site.name for site in plan.sites] == ["mix"]
    audit = {entry.parameter: entry for entry in plan.audit}
    assert audit["dense.weight"].coverage in ("not equivariant", "unexplained")


class InOwnBasis(nn.Module):
    """Features in a basis that is itself trained: how they transform depends on the weights."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.tensor([[1.0, 0.5], [-0.3, 2.0]]), requires_grad=trained)
        self.mix, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(self.basis @ x)
        return self.head((torch.linalg.inv(self.basis) @ h).square().sum(-2))


def test_a_type_that_depends_on_the_weights_is_none() -> None:
    assert "mix" in {site.name for site in find(InOwnBasis(trained=False), "D3").sites}
    try:
        found = {site.name for site in find(InOwnBasis(trained=True), "D3").sites}
    except NothingToRelaxError as refusal:
        found = {site.name for site in refusal.plan.sites}
    assert "mix" not in found


@pytest.mark.parametrize("group", ["D3", "C3", "O2"])
def test_the_models_own_output_has_to_transform_as_said(group: str) -> None:
    """A factor of 1 + 1e-4 is within the rounding that annotations forgive, and enough to trust no measurement."""
    assert find(Net(), group).sites
    for factor in (1.01, 1.0001):
        with pytest.raises(SurgeonError, match="to be a symmetry"):
            find(Net(), group, spoil=lambda g, y, factor=factor: factor * y)


def test_an_output_that_changes_sign_is_told_apart_by_the_reflection() -> None:
    with pytest.raises(NotASymmetryError, match="'reflection'.*choose C3"):
        find(Net(), "D3", spoil=lambda g, y: torch.linalg.det(g) * y)


class Inside(Net):
    """Puts ``op`` between two layers on vectors."""

    def __init__(self, op: nn.Module, mask: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("mask", torch.tensor(mask))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        h = self.mask * h * h.norm(dim=-2, keepdim=True)
        return self.head((self.mix(self.op(h)) + self.other(h)).square().sum(-2))


class Gate(nn.Module):
    """Equivariant with any weights; linear only if ``power`` is 0."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.weight, self.power = nn.Parameter(torch.randn(4, 4)), power

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.weight * h.square().sum((-2, -1), keepdim=True) ** self.power


def test_an_equivariant_op_that_is_not_linear_is_no_site() -> None:
    """Its linear part, the product with its matrix, is one."""
    for power, argument in ((0, "h"), (1, "weight")):
        plan = find(Inside(Gate(power)), "D3")
        assert [site.argument for site in plan.sites if site.name == "op"] == [argument]


def test_features_that_are_0_on_the_whole_batch_are_told_by_the_weights_that_read_them() -> None:
    plan = find(Inside(nn.Identity(), (1.0, 1.0, 1.0, 0.0)), "D3")
    assert {site.name for site in plan.sites} == {"lift", "mix", "other"}


class Twice(Net):
    """Calls a layer on vectors and then on what does not turn."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        h = h * h.norm(dim=-2, keepdim=True)
        still = self.mix(h.norm(dim=-2, keepdim=True).expand_as(h)).mean(-2)
        return self.head((self.mix(h) + self.other(h)).square().sum(-2) + still)


def test_a_type_has_to_hold_in_every_call() -> None:
    plan = find(Twice(), "D3")
    assert {site.name for site in plan.sites} == {"lift", "other"}
    audit = next(entry for entry in plan.audit if entry.parameter == "mix.weight")
    assert "in another call" in audit.reason


class Product(nn.Module):
    """Linear in each argument with the other fixed."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
        self.together = together

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a @ self.left, b @ self.right
        return a + b if self.together else (a * b).sum(-2, keepdim=True)


class OfTwo(Net):
    def __init__(self, together: bool) -> None:
        super().__init__()
        self.op = Product(together)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        h = h * h.norm(dim=-2, keepdim=True)
        return self.head(self.op(self.mix(h), self.other(h)).square().sum(-2))


def test_of_a_product_one_factor_takes_a_branch_and_of_a_sum_both_terms() -> None:
    for together, arguments in ((True, {"a", "b"}), (False, {"a"})):
        plan = find(OfTwo(together), "D3")
        assert {site.argument for site in plan.sites if site.name == "op"} == arguments


class Numbered(nn.Linear):
    """Multiplies each row by its number first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.arange(1, 9).to(x)[:, None])


def test_rows_that_change_places_have_to_take_their_results_along() -> None:
    net = AllFrames()
    net.first = Numbered(12, 10)
    with pytest.raises(NotASymmetryError) as caught:
        surgeon.find(net, "O3", torch.randn(5, 4, 3), act=lambda g, x: x @ g.to(x).T, act_output=lambda g, y: y @ g.T)
    audit = {entry.parameter: entry.coverage for entry in caught.value.plan.audit}
    assert (audit["first.weight"], audit["last.weight"]) == ("unexplained", "unexplained")
