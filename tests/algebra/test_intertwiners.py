"""P(W) is the Haar average; P_op(W) is the least-squares projection on what the op's own weights can do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import FoldMap, WeightEntries, average, copy_indices
from surgeon.algebra.representations.build import axes, irreps, representation_from
from surgeon.algebra.representations.core import Representation
from surgeon.errors import GroupError, ShapeError
from surgeon.plan import Site
from surgeon_adapters.e3nn_layers.adapter import adapter
from tests import nets
from tests.nets import o3

pytestmark = pytest.mark.e3nn

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


def constant_only() -> Tensor:
    """The constant scalars alone, so that no other path contributes."""
    return torch.cat([torch.tensor([[1.0, 0.7]], dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)], dim=1)


OPS: dict[str, tuple[str, Any, Any]] = {
    "linear": ("2x0e+2x1o", lambda: o3.Linear("2x0e+2x1o", "3x0e+2x1o"), None),
    "linear, split blocks": ("2x0e+2x1o+1x0e", lambda: o3.Linear("2x0e+2x1o+1x0e", "0e+2x1o+2x0e"), None),
    "linear, with biases": ("2x0e+1o", lambda: o3.Linear("2x0e+1o", "2x0e+1o", biases=True), None),
    "linear, missing paths": ("2x0e+3x0e+2x1o+2e", nets.linear_with_missing_paths, None),
    "linear, one pair twice": ("2x1o", lambda: o3.Linear("2x1o", "2x1o", instructions=[(0, 0), (0, 0)]), None),
    "full product": ("2x0e+2x1o", lambda: o3.FullyConnectedTensorProduct("2x0e+2x1o", "2x0e+2x1o", "0e+2x1o"), True),
    **{f"product {mode}": ("2x0e+2x1o", lambda mode=mode: nets.product(mode), True) for mode in nets.MODES},
}


def op_with_map(name: str, group: str = "O3") -> tuple[nn.Module, Tensor | None, FoldMap, Site]:
    labels, make, bilinear = OPS[name]
    with nets.default_dtype(torch.float64):
        op = make()
    y = constant_only() if bilinear else None
    call = {} if y is None else {"y": y.expand(2, -1)}
    proposal = adapter.propose(op, parse_group(group))
    fold, note = adapter.fold_data(op, [call])
    assert fold is not None, note
    site = nets.site_of(proposal, fold)
    assert o3.Irreps(labels).dim == site.shape[1]
    return op, y, adapter.fold_map(op, site, parse_group(group)), site


@pytest.mark.parametrize("name", OPS)
def test_projection_is_least_squares_on_the_ops_weights(name: str) -> None:
    op, y, fold_map, site = op_with_map(name)
    jacobian = nets.weight_jacobian(op, y, site.shape[1])
    weight = torch.randn(site.shape, dtype=torch.float64)
    change = torch.linalg.pinv(jacobian) @ weight.flatten()
    reference = (jacobian @ change).reshape(site.shape)
    assert reference.norm() > 0.1
    assert torch.allclose(fold_map.project(weight), reference, atol=EXACT)
    assert torch.allclose(fold_map.weight_change(weight, op.weight.numel()), change, atol=EXACT)


@pytest.mark.parametrize(
    ("name", "all_of_it"),
    [("linear", True), ("linear, split blocks", True), ("full product", True), ("linear, missing paths", False)]
    + [("product uvw", True), ("product uvu", False), ("product uuu", False)],
)
def test_an_op_with_a_path_for_every_pair_reaches_all_intertwiners(name: str, all_of_it: bool) -> None:
    op, y, fold_map, site = op_with_map(name)
    rho_out, rho_in = (representation_from(parse_group("O3"), rho) for rho in (site.rho_out, site.rho_in))
    weight = torch.randn(site.shape, dtype=torch.float64)
    difference = (fold_map.project(weight) - average(weight, rho_out, rho_in)).norm()
    assert difference < EXACT if all_of_it else difference > 0.1


def test_under_so3_the_op_still_reaches_its_own_paths_only() -> None:
    group = parse_group("SO3")
    with nets.default_dtype(torch.float64):
        op = o3.Linear("1o+1e", "1o+1e")
    proposal = adapter.propose(op, group)
    site = nets.site_of(proposal, {"parameter": "weight"})
    fold_map = adapter.fold_map(op, site, group)
    weight = torch.eye(3, dtype=torch.float64).repeat(2, 2)
    assert torch.equal(average(weight, proposal.rho_out, proposal.rho_in), weight)
    expected = torch.block_diag(torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert torch.equal(fold_map.project(weight), expected)


def test_projection_is_differentiable_twice() -> None:
    _, _, fold_map, site = op_with_map("product uvu")
    weight = torch.randn(site.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fold_map.project, (weight,))
    assert torch.autograd.gradgradcheck(lambda w: fold_map.project(w) ** 2, (weight,))


def test_entries_that_share_a_pair_take_the_minimum_norm() -> None:
    one = torch.zeros(2, dtype=torch.long)
    entries = WeightEntries(one[:1, None], one[:1, None], torch.arange(2), one, one, torch.tensor([3.0, 4.0]).double())
    change = FoldMap("weight", {"0e": entries}, (1, 1)).weight_change(torch.full((1, 1), 50.0).double(), 2)
    assert change.tolist() == pytest.approx([6.0, 8.0])


def test_a_wrong_coefficient_would_be_seen() -> None:
    op, y, fold_map, site = op_with_map("full product")
    part = fold_map.entries["1o"]
    wrong = FoldMap("weight", {"1o": dataclasses.replace(part, coefficient=2 * part.coefficient)}, site.shape)
    weight = torch.randn(site.shape, dtype=torch.float64)
    change = torch.linalg.pinv(nets.weight_jacobian(op, y, site.shape[1])) @ weight.flatten()
    assert (wrong.weight_change(weight, op.weight.numel()) - change).norm() > 0.1


def test_copies_need_irreps() -> None:
    with pytest.raises(GroupError, match="irreps only"):
        copy_indices(axes(parse_group("C4"), "c v", {"c": 1}))
