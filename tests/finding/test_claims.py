"""What is called invariant: whether every linear map is equivariant there is tried out, or said not to be known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import surgeon
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import NothingToRelaxError
from surgeon.finding.annotated_ops import INVARIANT, LABELLED, UNCHECKED
from surgeon.finding.find import CONSTANT
from surgeon.testing.soundness import Model, check_plan
from tests.finding.test_audit import Invariants, audited, coverage
from tests.nets import o3

ON_BATCH = UNCHECKED.format("on the sample batch")


def reasons(plan: surgeon.Plan) -> dict[str, str]:
    return {entry.parameter: entry.reason for entry in plan.audit}


def refused(model: nn.Module, group: str = "O3", x: Tensor | None = None, **options: Any) -> tuple[surgeon.Plan, str]:
    """Return the plan without sites, and the words."""
    with pytest.raises(NothingToRelaxError) as caught:
        audited(model, group, x, **options)
    return caught.value.plan, str(caught.value)


class Traces(nn.Module):
    """Multiples of the identity among tensors of rank 2: what multiplies their channels acts on tensors."""

    def __init__(self, tensors: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.last, self.tensors = nn.Linear(4, 4, bias=False), tensors

    def forward(self, x: Tensor) -> Tensor:
        v = self.first(x[..., None])
        scalars = v.square().sum(1)
        if not self.tensors:
            return (v * self.second(scalars)[:, None]).square().sum((1, 2))
        matrices = self.second(scalars[:, None, None] * torch.eye(3).to(x)[..., None])
        return torch.einsum("nijc,nic,njc->n", matrices, v, self.last(v * scalars[:, None]))


@pytest.mark.parametrize("tensors", [True, False])
def test_multiples_of_the_identity_are_typed_by_their_use(tensors: bool) -> None:
    plan = audited(Traces(tensors))
    sites = {site.name: site for site in plan.sites}
    assert ("second" in sites) == tensors
    if tensors:
        assert (sites["second"].rho_in.to_data()["axes"], sites["second"].axes_in) == ("v w c", (-3, -2, -1))
        assert any("typed by their use" in note for note in plan.notes)
    else:
        (entry,) = (entry for entry in plan.audit if entry.parameter == "second.weight")
        assert entry.reason == INVARIANT


class Rows(nn.Module):
    """Scalars in the first of four rows, which are degrees 0 and 1: the others are 0 before messages come in."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.layer = nn.Linear(1, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v = self.mix(x[..., None])
        scalars = v.square().sum(1, keepdim=True)
        h = self.layer(torch.cat([scalars, 0 * v.detach()], 1))
        return (h[:, :1] * (h[:, 1:] + v).square().sum(1, keepdim=True)).sum((1, 2))


class Shuffled(Rows):
    """The same in a basis that is nobody's."""

    def forward(self, x: Tensor) -> Tensor:
        v = self.mix(x[..., None])
        scalars = v.square().sum(1, keepdim=True)
        h = self.layer(torch.cat([scalars, 0 * v.detach()], 1)).flip(1) @ torch.ones(4, 1).to(x)
        return ((h[:, :3] + v).square().sum(1) * h[:, 3]).sum(-1)


def test_what_breaks_the_model_by_an_unknown_type_is_not_called_invariant() -> None:
    (entry,) = (entry for entry in audited(Shuffled()).audit if entry.parameter == "layer.weight")
    assert (entry.coverage, "takes it for a tensor of" in entry.reason) == ("unexplained", True)


def test_rows_that_are_0_today_are_typed_by_their_use() -> None:
    plan = audited(Rows())
    (site,) = (site for site in plan.sites if site.name == "layer")
    assert (str(site.rho_in), site.axes_in) == ("1x0e+1x1o (mul_ir) x 4", (-2, -1))


def test_bisection_keeps_the_claims_that_hold() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.bad = Traces(tensors=False), Traces(tensors=True)
            self.also = Invariants()

        def forward(self, x: Tensor) -> Tensor:
            return self.good(x) + self.bad(x) + self.also(x)[:, 0]

    found = coverage(audited(Both()))
    assert found["bad.second.weight"] == "site"
    assert {found[name] for name in ("good.second.weight", "also.first.weight", "also.last.weight")} == {"invariant"}


class Isotropic(nn.Module):
    """A convolution with kernels that quarter turns map to themselves, or a plain one."""

    def __init__(self, into: int, out: int, size: int, dimension: int = 2) -> None:
        super().__init__()
        self.weight, self.dimension = nn.Parameter(torch.randn(out, into, *[size] * dimension)), dimension

    def forward(self, x: Tensor) -> Tensor:
        if self.dimension == 1:
            return functional.conv1d(x, self.weight, padding="same")
        turned = [torch.rot90(self.weight, times, (-2, -1)) for times in range(4)]
        return functional.conv2d(x, torch.stack(turned).mean(0), padding="same")


class Images(nn.Module):
    """Scalar fields only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second, self.head = Isotropic(1, 3, size), Isotropic(3, 2, size), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).square().mean((-2, -1)))


def turn_image(g: Tensor, x: Tensor) -> Tensor:
    return torch.rot90(x, round(float(torch.atan2(g[1, 0], g[0, 0])) / (torch.pi / 2)), (-2, -1))


@pytest.mark.parametrize("size", [3, 1])
def test_a_kernel_between_scalar_fields_is_not_free(size: int) -> None:
    model, x = Images(size).double(), torch.randn(4, 1, 5, 5, dtype=torch.float64)
    if size == 1:
        plan, words = refused(model, "C4", x, act=turn_image)
        assert set(reasons(plan).values()) == {INVARIANT}
        assert "by design" in words
        return
    plan = audited(model, "C4", x, act=turn_image)
    assert [(site.key, site.shape) for site in plan.sites] == [("first.x", (3, 1, 3, 3)), ("second.x", (2, 3, 3, 3))]
    symmetry = Symmetry(parse_group("C4"), turn_image, lambda g, y: y)
    check_plan(Model(model, (x,), symmetry), plan)


def test_a_kernel_along_an_axis_that_nothing_turns_is_free() -> None:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.smooth, self.head = Isotropic(1, 3, 3, dimension=1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.smooth(x.norm(dim=-1)[:, None]).tanh().mean(-1))

    plan, _ = refused(Series(), x=torch.randn(4, 7, 3))
    assert set(reasons(plan).values()) == {INVARIANT}


class RawTraces(Traces):
    """The same by raw operations in one forward that is not linear."""

    def __init__(self, tensors: bool) -> None:
        super().__init__(tensors)
        self.second = nn.Module()
        self.w, self.u = (nn.Parameter(torch.randn(4, 4) / 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        v = self.first(x[..., None])
        scalars = v.square().sum(1) @ self.u.T
        if not self.tensors:
            return (v * torch.einsum("nc,dc->nd", scalars.tanh(), self.w)[:, None]).square().sum((1, 2))
        matrices = torch.matmul(scalars[:, None, None] * torch.eye(3).to(x)[..., None], self.w)
        return torch.einsum("nijc,nic,njc->n", matrices, v, self.last(v * scalars[:, None]))


@pytest.mark.parametrize("tensors", [True, False])
def test_raw_operations_on_invariants_are_checked_too(tensors: bool) -> None:
    plan = audited(RawTraces(tensors))
    assert reasons(plan)["u"] == INVARIANT
    if tensors:
        (site,) = (site for site in plan.sites if site.parameters == ("w",))
        assert (site.rho_in.to_data()["axes"], site.axes_in) == ("v w c", (-3, -2, -1))
    else:
        assert reasons(plan)["w"] == INVARIANT


class Norms(nn.Module):
    """A layer on invariants beside a site; what becomes of its result differs."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix, self.layer, self.then = nn.Linear(1, 4, bias=False), nn.Linear(4, 4), then

    def forward(self, x: Tensor) -> Tensor:
        norms = self.mix(x[..., None]).square().sum(1)
        return norms.sum(-1) + self.then(self.layer(norms)).sum(-1)


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (lambda y: y.tanh(), "invariant"),
        (lambda y: (y > 1e9).to(y), "no effect"),
        (lambda y: (y - 1e9).relu(), "no effect"),
    ],
)
def test_what_reaches_no_output_is_not_called_free(then: Callable[[Tensor], Tensor], said: str) -> None:
    plan = audited(Norms(then))
    assert (coverage(plan)["layer.weight"], coverage(plan)["layer.bias"]) == (said, said)
    assert coverage(plan)["mix.weight"] == "site"


@pytest.mark.parametrize("constant", [True, False])
def test_a_constant_output_shows_no_symmetry(constant: bool) -> None:
    class Net(Norms):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            return (result - 1e9).relu() if constant else result

    model = Net(torch.tanh)
    plan = refused(model)[0] if constant else audited(model)
    assert (CONSTANT in plan.notes) == constant
    assert ("accepted when act_output shows" in reasons(plan)["mix.weight"]) == constant
    assert coverage(plan)["layer.weight"] == ("no effect" if constant else "invariant")


def test_an_output_that_starts_at_zero_is_judged_with_other_weights() -> None:
    class Net(Norms):
        def __init__(self) -> None:
            super().__init__(torch.tanh)
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    plan = audited(Net())
    assert (coverage(plan)["mix.weight"], CONSTANT in plan.notes) == ("site", False)


def test_annotations_as_invariant_are_tried_out() -> None:
    for tensors in (True, False):
        model = Traces(tensors)
        model.second = o3.Linear("4x0e", "4x0e")
        plan = audited(model)
        assert ("second" in {site.name for site in plan.sites}) == tensors
        assert tensors or reasons(plan)["second.weight"] == INVARIANT


@pytest.mark.parametrize(
    ("options", "said"), [({"act": None, "act_output": None}, LABELLED), ({"act_output": None}, ON_BATCH)]
)
def test_what_is_invariant_by_an_annotation_or_on_a_batch_only_is_not_called_free(
    options: dict[str, Any], said: str
) -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = o3.Linear("3x0e", "3x0e")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer((x[:, None] - x[None]).norm(dim=-1)[:, 1:4]).tanh().sum(-1)

    plan, words = refused(Labelled(), **options)
    assert reasons(plan)["layer.weight"] == said
    assert ("not checked" in words, "by design" in words) == (True, False)
