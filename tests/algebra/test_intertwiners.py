"""P(W) is the Haar average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average, copy_indices
from surgeon.algebra.representations.build import axes, irreps
from surgeon.algebra.representations.core import Representation
from surgeon.errors import GroupError, ShapeError

EXACT = 1e-12
IRREPS = st.lists(
    st.tuples(st.integers(1, 2), st.integers(0, 3), st.sampled_from("eo")).map(lambda t: f"{t[0]}x{t[1]}{t[2]}"),
    min_size=1,
    max_size=3,
).map("+".join)
LAYOUTS = st.sampled_from(["mul_ir", "ir_mul"])


def commutant_projection(weight: Tensor, rho_out: Representation, rho_in: Representation) -> Tensor:
    """Project on the null space of W -> (L_A(W), L_g(W)), from dense matrices."""
    one_out, one_in = (torch.eye(rho.dimension, dtype=torch.float64) for rho in (rho_out, rho_in))
    rows = []
    for out, into in (
        (rho_out.generators().dense(), rho_in.generators().dense()),
        (rho_out.element_actions().dense(), rho_in.element_actions().dense()),
    ):
        rows += [torch.kron(a, one_in) - torch.kron(one_out, b.T.contiguous()) for a, b in zip(out, into, strict=True)]
    _, sizes, directions = torch.linalg.svd(torch.cat(rows))
    null = directions[int((sizes > 1e-9).sum()) :]
    return (null.T @ (null @ weight.flatten())).reshape(weight.shape)


@settings(max_examples=20)
@given(st.sampled_from(["SO3", "O3", "SE3", "E3"]), IRREPS, IRREPS, LAYOUTS, LAYOUTS)
def test_average_is_the_projection_on_the_commutant(name: str, out: str, into: str, layout: Any, other: Any) -> None:
    group = parse_group(name)
    rho_out, rho_in = irreps(group, out, layout), irreps(group, into, other)
    weight = torch.randn(rho_out.dimension, rho_in.dimension, dtype=torch.float64)
    averaged = average(weight, rho_out, rho_in)
    assert torch.allclose(averaged, commutant_projection(weight, rho_out, rho_in), atol=1e-9)
    assert torch.allclose(average(averaged, rho_out, rho_in), averaged, atol=EXACT)


def test_average_is_the_mean_over_random_elements() -> None:
    group = parse_group("O3")
    rho_out, rho_in = irreps(group, "2x1o+1e"), irreps(group, "0e+2x1o", "ir_mul")
    weight = torch.randn(rho_out.dimension, rho_in.dimension, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    g = torch.cat([group.sample(20_000, generator, component) for component in (0, 1)])
    mean = (rho_out.action(g).dense() @ weight @ rho_in.action(g).dense().mT).mean(0)
    averaged = average(weight, rho_out, rho_in)
    assert (mean - averaged).abs().max() < 0.05
    assert (mean - weight).abs().max() > 0.5


def test_parity_separates_copies_only_in_a_group_with_inversion() -> None:
    for name, expected in (("SO3", {"0", "1"}), ("SE3", {"0", "1"}), ("O3", {"0e", "1o", "1e"})):
        group = parse_group(name)
        assert set(copy_indices(irreps(group, "2x0e+1o+1e"))) == expected
    rho_out, rho_in = (irreps(parse_group("O3"), labels) for labels in ("1e", "1o"))
    weight = torch.eye(3, dtype=torch.float64)
    assert not average(weight, rho_out, rho_in).any()
    rho_out, rho_in = (irreps(parse_group("SO3"), labels) for labels in ("1e", "1o"))
    assert torch.equal(average(weight, rho_out, rho_in), weight)


def test_average_refuses_what_it_cannot_do() -> None:
    group = parse_group("O3")
    rho = irreps(group, "2x1o")
    with pytest.raises(ShapeError, match=r"\(6, 6\).*got \(6, 5\)"):
        average(torch.zeros(6, 5), rho, rho)
    tensors = axes(group, "v w", {})
    with pytest.raises(GroupError, match="irreps only"):
        average(torch.zeros(9, 9), tensors, tensors)


def test_vectors_average_like_irreps() -> None:
    group = parse_group("O3")
    weight = torch.randn(6, 9, dtype=torch.float64)
    vectors = [axes(group, "c v", {"c": count}) for count in (2, 3)]
    same = average(weight, irreps(group, "2x1o"), irreps(group, "3x1o"))
    assert torch.equal(average(weight, *vectors), same)
    planar = axes(parse_group("SO2"), "c v", {"c": 2})  # complex type: more intertwiners than multiples of 1
    with pytest.raises(GroupError, match="irreps only"):
        average(torch.zeros(4, 4), planar, planar)


def test_copies_need_irreps() -> None:
    with pytest.raises(GroupError, match="irreps only"):
        copy_indices(axes(parse_group("C4"), "c v", {"c": 1}))
