"""Both penalty terms against brute force with dense matrices, in both forms, for every kind of group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average
from surgeon.algebra.moments import SecondMoment
from surgeon.algebra.penalty import EPSILON, Commutator, site_penalty
from surgeon.algebra.representations.build import axes, irreps, regular, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.errors import ShapeError
from tests.formulas import commutator_penalty, commutator_penalty_rows, norm_penalty, norm_penalty_rows

pytestmark = pytest.mark.e3nn

Term = Callable[[Tensor], Tensor]

RELATIVE = 1e-10
O3 = "0e+2x1o+1e+2e+3o+4e"


def boosts_and_scalings() -> Representation:
    algebra = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    return axes(group_from_generators("CSO11", algebra, torch.diag(torch.tensor([1.0, -1.0]))[None]), "c v w", {"c": 2})


PAIRS: dict[str, Callable[[], tuple[Representation, Representation]]] = {
    "SO3": lambda: (irreps(parse_group("SO3"), O3), irreps(parse_group("SO3"), "2x1o+2e", "ir_mul")),
    "O3": lambda: (irreps(parse_group("O3"), "2x0e+3x1o+2e", "ir_mul"), irreps(parse_group("O3"), O3)),
    "SE3": lambda: (irreps(parse_group("SE3"), "2x1o+4e"), irreps(parse_group("SE3"), "0e+2x1o", "ir_mul")),
    "SO(1,3)": lambda: (axes(parse_group("SO13"), "c v w", {"c": 1}), axes(parse_group("SO13"), "v c", {"c": 2})),
    "SO2": lambda: (axes(parse_group("SO2"), "c v", {"c": 3}), axes(parse_group("SO2"), "v c", {"c": 2})),
    "C4": lambda: (regular(parse_group("C4"), 2), regular(parse_group("C4"), 3, "ir_mul")),
    "O13": lambda: (axes(parse_group("O13"), "c v", {"c": 2}), axes(parse_group("O13"), "v c", {"c": 2})),
    "user-defined": lambda: (boosts_and_scalings(), boosts_and_scalings()),
}


def random_weight(rho_out: Representation, rho_in: Representation) -> Tensor:
    return torch.randn(rho_out.dimension, rho_in.dimension, dtype=torch.float64)


def dense_defects(weight: Tensor, rho_out: Representation, rho_in: Representation) -> list[Tensor]:
    pairs = [
        *zip(rho_out.generators().dense(), rho_in.generators().dense(), strict=True),
        *zip(rho_out.element_actions().dense(), rho_in.element_actions().dense(), strict=True),
    ]
    return [out @ weight - weight @ into for out, into in pairs]


@pytest.mark.parametrize("name", PAIRS)
def test_both_forms_equal_brute_force(name: str) -> None:
    rho_out, rho_in = PAIRS[name]()
    weight, rows = random_weight(rho_out, rho_in), torch.randn(7, rho_in.dimension, dtype=torch.float64)
    defects = dense_defects(weight, rho_out, rho_in)
    assert len(defects) == len(rho_in.group.feature_algebra) + len(rho_in.group.feature_elements) > 0
    squares = [sum((m @ x).square().sum() for x in rows) / len(rows) for m in defects]
    gram = sum(math.sqrt(s + EPSILON) for s in squares)
    printed = sum(sum(math.sqrt((m @ x).square().sum() + EPSILON) for x in rows) / len(rows) for m in defects)
    moments = rows.T @ rows / len(rows)
    assert gram > 0.1
    assert float(commutator_penalty(weight, rho_out, rho_in, moments)) == pytest.approx(gram, rel=RELATIVE)
    assert float(commutator_penalty_rows(weight, rho_out, rho_in, rows)) == pytest.approx(printed, rel=RELATIVE)
    assert gram >= printed  # Jensen
    norms = [float((weight @ x).norm()) for x in rows]
    assert float(norm_penalty_rows(weight, rows)) == pytest.approx(sum(norms) / len(norms), rel=RELATIVE)
    root = math.sqrt(sum(n * n for n in norms) / len(norms))
    assert float(norm_penalty(weight, moments)) == pytest.approx(root, rel=RELATIVE)
    assert float(norm_penalty(weight, moments)) >= float(norm_penalty_rows(weight, rows))


def with_gradient(value: Callable[[Tensor], Tensor], weight: Tensor) -> tuple[float, Tensor]:
    leaf = weight.clone().requires_grad_()
    result = value(leaf)
    return float(result.detach()), torch.autograd.grad(result, leaf)[0]


def recorded(form: str, rows: Tensor) -> SecondMoment:
    moment = SecondMoment(rows.shape[1], keep_rows=form == "rows")
    moment.add(rows)
    return moment


def slow(form: str, rho_out: Representation, rho_in: Representation, rows: Tensor) -> tuple[Term, Term]:
    """Both terms, written down without any care for speed."""
    moments = rows.T @ rows / len(rows)
    if form == "gram":
        return lambda w: norm_penalty(w, moments), lambda w: commutator_penalty(w, rho_out, rho_in, moments)
    if form == "rows":
        return lambda w: norm_penalty_rows(w, rows), lambda w: commutator_penalty_rows(w, rho_out, rho_in, rows)
    commutator = Commutator(rho_out, rho_in)
    return (
        lambda w: (rows @ w.T).square().sum() / len(rows),
        lambda w: (rows @ commutator(w).mT).square().sum() / len(rows),
    )


@pytest.mark.parametrize("few", [True, False], ids=["rows kept", "gram"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("form", ["gram", "rows", "square"])
def test_the_closed_form_gradient_is_that_of_autograd(name: str, form: Any, few: bool) -> None:
    rho_out, rho_in = PAIRS[name]()
    count = 2 if few else 2 * rho_in.dimension
    weight, rows = random_weight(rho_out, rho_in), torch.randn(count, rho_in.dimension, dtype=torch.float64)
    norms, gradients = zip(*(with_gradient(term, weight) for term in slow(form, rho_out, rho_in, rows)), strict=True)
    found = site_penalty((weight,), recorded(form, rows), Commutator(rho_out, rho_in), form)
    assert float(found.norm) == pytest.approx(norms[0], rel=RELATIVE)
    assert float(found.defect) == pytest.approx(norms[1], rel=RELATIVE)
    assert min(gradient.norm() for gradient in gradients) > 1e-3
    assert torch.allclose(found.gradients[0], sum(gradients), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("few", [True, False], ids=["rows kept", "gram"])
def test_mixed_precision_does_not_round_the_penalty(few: bool) -> None:
    rho_out, rho_in = PAIRS["O3"]()
    weight, rows = random_weight(rho_out, rho_in).float(), torch.randn(2 if few else 100, rho_in.dimension)
    commutator, moments = Commutator(rho_out, rho_in), recorded("gram", rows)
    expected = site_penalty((weight,), moments, commutator)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = site_penalty((weight,), moments, commutator), weight @ weight.T
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(found.gradients[0], expected.gradients[0])
    assert torch.equal(found.defect, expected.defect)


@pytest.mark.parametrize("few", [True, False], ids=["rows kept", "gram"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_summed_in_float32(dtype: torch.dtype, few: bool) -> None:
    """Squares of these features leave the range of float16, those of these weights fall below it."""
    rho_out, rho_in = PAIRS["O3"]()
    weight = 1e-5 * random_weight(rho_out, rho_in).to(dtype)
    rows = (300 * torch.randn(2 if few else 100, rho_in.dimension)).to(dtype)
    commutator = Commutator(rho_out, rho_in)
    found = site_penalty((weight,), recorded("gram", rows), commutator)
    expected = site_penalty((weight.float(),), recorded("gram", rows.float()), commutator)
    assert torch.equal(torch.stack([found.norm, found.defect]), torch.stack([expected.norm, expected.defect]))
    assert torch.equal(found.gradients[0], expected.gradients[0])
    assert found.norm > 0


@pytest.mark.parametrize("few", [True, False], ids=["rows kept", "gram"])
@pytest.mark.parametrize("form", ["gram", "rows", "square"])
def test_low_rank_gradients_are_those_of_the_product(form: Any, few: bool) -> None:
    rho_out, rho_in = PAIRS["O3"]()
    count = 2 if few else 2 * rho_in.dimension
    a = torch.randn(3, rho_in.dimension, dtype=torch.float64, requires_grad=True)
    b = torch.randn(rho_out.dimension, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(count, rho_in.dimension, dtype=torch.float64)
    norm, defect = (term(b @ a) for term in slow(form, rho_out, rho_in, rows))
    expected = torch.autograd.grad(norm + defect, (a, b))
    found = site_penalty((a.detach(), b.detach()), recorded(form, rows), Commutator(rho_out, rho_in), form)
    assert float(found.norm + found.defect) == pytest.approx(float((norm + defect).detach()), rel=RELATIVE)
    for one, other in zip(found.gradients, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def hand_made(group: str, layout: str) -> tuple[Tensor, Representation, Representation]:
    """Two copies of 1o mixed by a matrix, and a scalar scaled."""
    group_ = parse_group(group)
    rho = irreps(group_, "0e+2x1o", layout)  # type: ignore[arg-type]
    mix = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    three = torch.eye(3, dtype=torch.float64)
    block = torch.kron(mix, three) if layout == "mul_ir" else torch.kron(three, mix)
    return torch.block_diag(torch.tensor([[2.0]], dtype=torch.float64), block), rho, rho


def check_vanishing(weight: Tensor, rho_out: Representation, rho_in: Representation, vanishes: bool) -> None:
    rows = torch.randn(9, rho_in.dimension, dtype=torch.float64)
    moments, commutator = rows.T @ rows / len(rows), Commutator(rho_out, rho_in)
    terms = len(commutator(weight))
    limit = terms * math.sqrt(EPSILON) * (1 + 1e-9)
    defects = (
        commutator_penalty(weight, rho_out, rho_in, moments),
        commutator_penalty_rows(weight, rho_out, rho_in, rows),
        site_penalty((weight,), recorded("gram", rows), commutator).defect,
    )
    assert all((float(defect) <= limit) == vanishes for defect in defects)
    assert float(norm_penalty(weight, moments)) > 0.01
    assert float(norm_penalty_rows(weight, rows)) > 0.01


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("group", ["SO3", "O3", "SE3", "E3"])
def test_a_hand_made_intertwiner_has_no_defect(group: str, layout: str) -> None:
    weight, rho_out, rho_in = hand_made(group, layout)
    check_vanishing(weight, rho_out, rho_in, True)
    weight[1, 2] += 0.1
    check_vanishing(weight, rho_out, rho_in, False)


@settings(max_examples=20)
@given(
    st.sampled_from(["SO3", "O3", "E3"]),
    st.sampled_from(["2x0e+1o", "1o+1e+2e", "3o+4e+0o+0e"]),
    st.sampled_from(["0e+2x1o", "2x1e+1o", "2e+3o+4e+2x0o"]),
    st.sampled_from(["mul_ir", "ir_mul"]),
)
def test_an_averaged_weight_has_no_defect_and_a_random_one_has(group: str, out: str, into: str, layout: str) -> None:
    rho_out, rho_in = (irreps(parse_group(group), labels, layout) for labels in (out, into))  # type: ignore[arg-type]
    weight = random_weight(rho_out, rho_in)
    averaged = average(weight, rho_out, rho_in)
    if averaged.any():
        check_vanishing(averaged, rho_out, rho_in, True)
    check_vanishing(weight, rho_out, rho_in, False)


def test_inversion_sees_what_the_lie_algebra_cannot() -> None:
    group = parse_group("O3")
    rho_out, rho_in = irreps(group, "1e"), irreps(group, "1o")
    lie, inversion = Commutator(rho_out, rho_in)(torch.eye(3, dtype=torch.float64)).split([3, 1])
    assert not lie.any()
    assert float(inversion.norm()) == pytest.approx(2 * math.sqrt(3))


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_finite_at_zero(name: str) -> None:
    rho_out, rho_in = PAIRS[name]()
    rows = torch.randn(5, rho_in.dimension, dtype=torch.float64)
    moments, commutator = rows.T @ rows / 5, Commutator(rho_out, rho_in)
    zero = torch.zeros(rho_out.dimension, rho_in.dimension, dtype=torch.float64)
    forms: tuple[Term, ...] = (
        lambda w: norm_penalty(w, moments) + commutator_penalty(w, rho_out, rho_in, moments),
        lambda w: norm_penalty_rows(w, rows) + commutator_penalty_rows(w, rho_out, rho_in, rows),
    )
    closed = site_penalty((zero,), recorded("gram", rows), commutator)
    results = [with_gradient(form, zero) for form in forms]
    for value, gradient in (*results, (float(closed.norm + closed.defect), closed.gradients[0])):
        assert value == pytest.approx((1 + len(commutator(zero))) * math.sqrt(EPSILON))
        assert not gradient.any()


def test_duplicating_the_batch_changes_nothing() -> None:
    rho_out, rho_in = PAIRS["O3"]()
    weight, rows = random_weight(rho_out, rho_in), torch.randn(4, rho_in.dimension, dtype=torch.float64)
    for many in (rows, rows.repeat(5, 1)):
        moments = many.T @ many / len(many)
        values = [
            norm_penalty(weight, moments),
            commutator_penalty(weight, rho_out, rho_in, moments),
            norm_penalty_rows(weight, many),
            commutator_penalty_rows(weight, rho_out, rho_in, many),
        ]
        if many is rows:
            first = values
    assert torch.allclose(torch.stack(first), torch.stack(values), rtol=1e-12)
    unnormalised = commutator_penalty(weight, rho_out, rho_in, many.T @ many)
    assert float(unnormalised) > 1.5 * float(values[1])


@pytest.mark.parametrize("l_out", [0, 1, 3])
def test_casimir_of_a_single_coupled_component(l_out: int) -> None:
    """sum_A |L_A(W)|^2 = sum_L L(L+1) |W_L|^2: for W from a scalar to one irrep L is that irrep's degree."""
    group = parse_group("SO3")
    weight = torch.randn(2 * l_out + 1, 1, dtype=torch.float64)
    defects = Commutator(irreps(group, f"{l_out}e"), trivial(group, 1))(weight)
    assert float(defects.square().sum()) == pytest.approx(l_out * (l_out + 1) * float(weight.square().sum()))


def test_casimir_of_two_vectors() -> None:
    """Trace, antisymmetric and symmetric traceless part of a 3 x 3 matrix have L = 0, 1, 2."""
    rho = irreps(parse_group("SO3"), "1o")
    weight = torch.randn(3, 3, dtype=torch.float64)
    antisymmetric = (weight - weight.T) / 2
    traceless = (weight + weight.T) / 2 - weight.trace() / 3 * torch.eye(3, dtype=torch.float64)
    expected = 2 * float(antisymmetric.square().sum()) + 6 * float(traceless.square().sum())
    assert float(Commutator(rho, rho)(weight).square().sum()) == pytest.approx(expected)


def test_operators_stay_exact_through_float32() -> None:
    rho_out, rho_in = PAIRS["O3"]()
    commutator, weight = Commutator(rho_out, rho_in), random_weight(rho_out, rho_in)
    exact = commutator(weight)
    assert commutator(weight.float()).dtype == torch.float32
    assert torch.equal(commutator(weight), exact)


def test_wrong_shapes_are_refused() -> None:
    rho_out, rho_in = PAIRS["O3"]()
    weight = random_weight(rho_out, rho_in)
    with pytest.raises(ShapeError, match="expected W of shape"):
        Commutator(rho_out, rho_in)(weight.T)
    with pytest.raises(ShapeError, match="expected moments of rows of dimension"):
        site_penalty((weight,), recorded("gram", torch.eye(2, dtype=torch.float64)), Commutator(rho_out, rho_in))
