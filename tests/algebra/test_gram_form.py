"""Sorted coordinates, and the few products that give all defects, against dense matrices."""

from __future__ import annotations

import pytest
import torch

from surgeon.algebra.gram_form import GramForm, sorted_side
from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, irreps, regular, trivial
from surgeon.algebra.representations.core import Representation

pytestmark = pytest.mark.e3nn

SIDES = {
    "irreps": irreps(parse_group("O3"), "2x1o+3x0e+1e+1o+2e"),
    "component first": axes(parse_group("SO3"), "v c", {"c": 4}),
    "two vector axes": axes(parse_group("SO13"), "v c w", {"c": 2}),
    "permutations": regular(parse_group("D4"), 2),
    "invariant": trivial(parse_group("SO3"), 3),
}


def dense(rho: Representation) -> torch.Tensor:
    return torch.cat([rho.generators().dense(), rho.element_actions().dense()])


@pytest.mark.parametrize("name", SIDES)
def test_sorted_operators_are_the_dense_ones(name: str) -> None:
    rho = SIDES[name]
    side, size = sorted_side(rho), rho.dimension
    order = torch.arange(size) if side.order is None else side.order
    x = torch.randn(size, size, dtype=torch.float64)
    for number, matrix in enumerate(dense(rho)):
        for transpose in (False, True):
            operator = (matrix.T if transpose else matrix)[order][:, order]
            left, right = torch.zeros_like(x), torch.zeros_like(x)
            side.add_left(left, x, number, transpose)
            side.subtract_right(right, x, number, transpose)
            assert torch.allclose(left, operator @ x, rtol=0, atol=1e-12)
            assert torch.allclose(right, -x @ operator, rtol=0, atol=1e-12)


def test_coordinates_are_sorted_by_component_only_where_they_are_not() -> None:
    assert sorted_side(SIDES["component first"]).order is None
    side = sorted_side(irreps(parse_group("SO3"), "2x1o+0e+1o"))
    assert side.order is not None
    assert side.back is not None
    assert side.order.tolist() == [0, 3, 7, 1, 4, 8, 2, 5, 9, 6]
    assert torch.equal(side.order[side.back], torch.arange(10))
    assert [(part.size, part.copies) for part in side.parts] == [(3, 3), (1, 1)]


def test_six_products_are_used_for_vectors_under_rotations_alone() -> None:
    assert [bool(part.turns) for part in sorted_side(SIDES["irreps"]).parts] == [True, False, True, False]
    boost = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    assert not sorted_side(axes(group_from_generators("boost", boost), "v c", {"c": 2})).parts[0].turns


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_squares_and_gradient_are_those_of_dense_matrices(dtype: torch.dtype) -> None:
    rho_out, rho_in = irreps(parse_group("O3"), "2x0e+3x1o+1e"), irreps(parse_group("O3"), "4x1o+0e+2e+2x1e")
    weight = torch.randn(rho_out.dimension, rho_in.dimension, dtype=torch.float64)
    rows = torch.randn(60, rho_in.dimension, dtype=torch.float64)
    moments = rows.T @ rows / len(rows)
    maps = [weight, *(out @ weight - weight @ into for out, into in zip(dense(rho_out), dense(rho_in), strict=True))]
    expected = torch.stack([(rows @ m.T).square().sum(-1).mean() for m in maps])
    terms, gradient = GramForm(rho_out, rho_in)(weight.to(dtype), moments.to(dtype), None)
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    assert torch.allclose(terms.double(), expected, rtol=limit, atol=0)
    pairs = zip(dense(rho_out), dense(rho_in), maps[1:], strict=True)
    by_hand = 2 * weight @ moments + sum(2 * (o.T @ m @ moments - m @ moments @ i.T) for o, i, m in pairs)
    assert float((gradient.double() - by_hand).norm()) < limit * float(by_hand.norm())
    wrong = GramForm(rho_out, irreps(parse_group("O3"), "4x1e+0e+2e+2x1o"))(weight.to(dtype), moments.to(dtype), None)
    assert not torch.allclose(wrong[0].double(), expected, rtol=limit, atol=0)
