"""Representations: homomorphism, derivative, layouts, block-wise against dense, descriptions and errors."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, irreps, regular, repeated, representation_from, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.factors import irrep_generators
from surgeon.errors import GroupError, ShapeError
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.modes import default_dtype

TOLERANCE = 1e-10

BUILDERS: dict[str, Callable[[], Representation]] = {
    "SO2 vectors": lambda: axes(parse_group("SO2"), "c v", {"c": 3}),
    "O2 rank two": lambda: axes(parse_group("O2"), "v w", {}),
    "SO3 irreps": lambda: irreps(parse_group("SO3"), "2x0o+3x1e+2o+2x3e", "ir_mul"),
    "O3 irreps": lambda: irreps(parse_group("O3"), "2x0e+0o+3x1o+1e+2x2e+4o"),
    "O3 mixed layouts": lambda: irreps(parse_group("O3"), "2x1o") + irreps(parse_group("O3"), "3x2e", "ir_mul"),
    "SE3 irreps": lambda: irreps(parse_group("SE3"), "1x0e+2x1o"),
    "E3 rank two, components first": lambda: axes(parse_group("E3"), "v c w", {"c": 2}),
    "SO13 rank two": lambda: axes(parse_group("SO13"), "c v w", {"c": 2}),
    "O13 rank three": lambda: axes(parse_group("O13"), "u v w", {}) + trivial(parse_group("O13"), 2),
    "C4 regular": lambda: regular(parse_group("C4"), 2),
    "D6 regular, elements first": lambda: regular(parse_group("D6"), 2, "ir_mul") + trivial(parse_group("D6"), 1),
    "D3 vectors": lambda: axes(parse_group("D3"), "v c", {"c": 2}),
    "SU2": lambda: axes(parse_group("SU2"), "c v", {"c": 2}),
    "SL2 rank two": lambda: axes(sl2(), "v w", {}),
}
LIE_CASES = [name for name in BUILDERS if not name.startswith(("C", "D"))]


def sl2() -> Group:
    """SL(2, R) on the plane."""
    return group_from_generators("SL2", torch.tensor([[[1.0, 0], [0, -1]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]]))


def rng(seed: int = 0) -> torch.Generator:
    """Return a seeded source of randomness."""
    return torch.Generator().manual_seed(seed)


def rotations(count: int, seed: int = 0) -> Tensor:
    """Random elements of SO(3)."""
    return parse_group("SO3").sample(count, rng(seed))


def homomorphism_defect(rho: Representation, g: Tensor, h: Tensor) -> float:
    """Largest entry of rho(g) rho(h) - rho(g h)."""
    return float((rho.action(g).dense() @ rho.action(h).dense() - rho.action(g @ h).dense()).abs().max())


def bracket_defect(rho: Representation, sign: float = 1.0) -> float:
    """Largest entry of [drho(A), drho(B)] - drho([A, B]) over pairs of generators."""
    algebra = rho.group.algebra
    pairs = list(combinations(range(len(algebra)), 2)) or [(0, 0)]
    a, b = algebra[[i for i, _ in pairs]], algebra[[j for _, j in pairs]]
    da, db = rho.derivative(a).dense(), rho.derivative(b).dense()
    return float((da @ db - db @ da - sign * rho.derivative(a @ b - b @ a).dense()).abs().max())


@pytest.mark.parametrize("name", BUILDERS)
def test_action_is_a_homomorphism_in_every_component(name: str) -> None:
    rho = BUILDERS[name]()
    components = range(len(rho.group.component_names))
    for first in components:
        for second in components:
            g, h = rho.group.sample(5, rng(first), first), rho.group.sample(5, rng(10 + second), second)
            assert homomorphism_defect(rho, g, h) < TOLERANCE
            # Negative twin: the other order of the product is another element, unless the group is commutative.
            if rho.group.name not in ("SO2", "C4") and first == 0 and second == components[-1]:
                assert float((rho.action(h @ g).dense() - rho.action(g @ h).dense()).abs().max()) > 1e-3


@pytest.mark.parametrize("name", LIE_CASES)
def test_derivative_is_a_homomorphism_of_lie_algebras(name: str) -> None:
    rho = BUILDERS[name]()
    assert bracket_defect(rho) < TOLERANCE
    if rho.group.name not in ("SO2", "O2"):
        assert bracket_defect(rho, sign=-1.0) > 0.1


@pytest.mark.parametrize("name", LIE_CASES)
def test_derivative_is_the_derivative_of_the_action(name: str) -> None:
    rho = BUILDERS[name]()
    eps = 1e-5
    plus = rho.action(torch.linalg.matrix_exp(eps * rho.group.algebra)).dense()
    minus = rho.action(torch.linalg.matrix_exp(-eps * rho.group.algebra)).dense()
    # Error of central differences: eps^2 / 6 times the third derivative, at most 12^3 here.
    torch.testing.assert_close((plus - minus) / (2 * eps), rho.derivative(rho.group.algebra).dense(), rtol=0, atol=1e-7)
    assert float(((plus - minus) / (2 * eps) + rho.derivative(rho.group.algebra).dense()).abs().max()) > 0.1


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("which", ["action", "derivative", "generators", "element_actions"])
def test_blockwise_equals_dense(name: str, which: str) -> None:
    rho = BUILDERS[name]()
    g = rho.group.sample(3, rng())
    operator = {
        "action": lambda: rho.action(g),
        "derivative": lambda: rho.derivative(rho.group.algebra),
        "generators": rho.generators,
        "element_actions": rho.element_actions,
    }[which]()
    d, n = rho.dimension, operator.count
    dense = operator.dense()
    assert dense.shape == (n, d, d)
    tall, wide = torch.randn(2, d, 5, dtype=torch.float64, generator=rng()).unbind()
    x = torch.randn(2, 4, d, dtype=torch.float64, generator=rng(1))
    torch.testing.assert_close(operator.left(tall), dense @ tall, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(operator.right(wide.T), wide.T @ dense, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(operator.apply(x), torch.einsum("nij,abj->nabi", dense, x), rtol=0, atol=TOLERANCE)
    stack = torch.randn(n, d, 5, dtype=torch.float64, generator=rng(2))
    torch.testing.assert_close(operator.left(stack), dense @ stack, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(operator.right(stack.mT), stack.mT @ dense, rtol=0, atol=TOLERANCE)
    if n and which == "action":
        assert float((operator.right(wide.T) - wide.T @ dense.mT).abs().max()) > 1e-3


def test_identity_acts_as_the_identity_and_zero_as_zero() -> None:
    for build in BUILDERS.values():
        rho = build()
        eye = torch.eye(rho.dimension, dtype=torch.float64)
        identity = torch.eye(rho.group.dimension)
        torch.testing.assert_close(rho.action(identity).dense()[0], eye, rtol=0, atol=1e-14)
        assert not rho.derivative(0 * identity).dense().any()


def test_degree_one_is_the_rotation_itself() -> None:
    group, g = parse_group("O3"), parse_group("O3").sample(20, rng(), 1)
    torch.testing.assert_close(irreps(group, "1o").action(g).dense(), g, rtol=0, atol=1e-15)
    torch.testing.assert_close(irreps(group, "1e").action(g).dense(), -g, rtol=0, atol=1e-15)
    assert torch.equal(irreps(group, "1o").generators().dense(), group.algebra)
    torch.testing.assert_close(irrep_generators(1), group.algebra, rtol=0, atol=1e-15)


def hard_rotations() -> Tensor:
    """Rotations by tiny angles, by almost and by exactly half a turn, and by one large angle, about random axes."""
    values = [0.0, 1e-12, 1e-8, 1e-4, 2.0, math.pi - 1e-4, math.pi - 1e-8, math.pi - 1e-12, math.pi]
    angles = torch.tensor(values, dtype=torch.float64)
    directions = torch.randn(4, 3, dtype=torch.float64, generator=rng())
    directions = torch.cat([directions / directions.norm(dim=1, keepdim=True), torch.eye(3, dtype=torch.float64)])
    algebra = torch.einsum("na,aij->nij", directions, parse_group("SO3").algebra)[:, None]
    theta = angles[None, :, None, None]
    # Rodrigues' formula is exact in the angle.
    changes = theta.sin() * algebra + (1 - theta.cos()) * algebra @ algebra
    return torch.eye(3, dtype=torch.float64) + changes.reshape(-1, 3, 3)


def degree_two(g: Tensor) -> Tensor:
    """The irrep l = 2 by another way: the action on symmetric traceless tensors, in e3nn's basis."""
    s = 2**-0.5
    basis = torch.zeros(5, 3, 3, dtype=torch.float64)
    for index, (i, j) in {0: (0, 2), 1: (0, 1), 3: (1, 2)}.items():
        basis[index, i, j] = basis[index, j, i] = s
    basis[2] = torch.diag(torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)) / 6**0.5
    basis[4] = torch.diag(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)) * s
    return torch.einsum("aij,nik,njl,bkl->nab", basis, g, g, basis)


def test_irreps_are_accurate_near_the_identity_and_near_half_turns() -> None:
    g = hard_rotations()
    group = parse_group("O3")
    for sign, parity in ((1, "e"), (-1, "e"), (1, "o"), (-1, "o")):
        expected = degree_two(g) * (sign if parity == "o" else 1)
        torch.testing.assert_close(irreps(group, f"2{parity}").action(sign * g).dense(), expected, rtol=0, atol=1e-13)
    for degree in range(3, 9):
        rho = irreps(group, f"{degree}e")
        assert homomorphism_defect(rho, g, g.flip(0)) < 1e-12
    assert float((irreps(group, "2e").action(g.mT).dense() - degree_two(g)).abs().max()) > 0.1


def test_irreps_agree_with_e3nn() -> None:
    o3 = import_e3nn()
    with default_dtype(torch.float64), warnings.catch_warnings():  # e3nn's generators take their precision from it
        warnings.simplefilter("ignore", DeprecationWarning)
        angles = [torch.rand(10, generator=rng(seed)) * 3 for seed in range(3)]
        g = o3.angles_to_matrix(*angles)
        expected = [o3.wigner_D(degree, *angles) for degree in range(9)]
    for degree, matrices in enumerate(expected):
        rho = irreps(parse_group("SO3"), f"{degree}e")
        torch.testing.assert_close(rho.action(g).dense(), matrices, rtol=0, atol=1e-12)
        if degree > 0:
            assert float((rho.action(g.mT).dense() - matrices).abs().max()) > 0.1


IRREPS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 4), st.sampled_from("eo")).map(lambda t: f"{t[0]}x{t[1]}{t[2]}"),
    min_size=1,
    max_size=5,
).map("+".join)


@settings(max_examples=30, deadline=None)
@given(IRREPS, st.sampled_from(["mul_ir", "ir_mul"]), st.integers(0, 1), st.integers(0, 1000))
def test_random_irreps(text: str, layout: Any, component: int, seed: int) -> None:
    group = parse_group("O3")
    rho = irreps(group, text, layout)
    g, h = group.sample(2, rng(seed), component), group.sample(2, rng(seed + 1))
    assert homomorphism_defect(rho, g, h) < TOLERANCE
    assert bracket_defect(rho) < TOLERANCE
    dense = rho.action(g).dense()
    torch.testing.assert_close(dense @ dense.mT, torch.eye(rho.dimension).double().expand_as(dense), rtol=0, atol=1e-12)
    permutation = layout_permutation(text)
    mul_ir, ir_mul = (irreps(group, text, kind).action(g).dense() for kind in ("mul_ir", "ir_mul"))
    torch.testing.assert_close(ir_mul, mul_ir[:, permutation][:, :, permutation], rtol=0, atol=0)
    assert representation_from(group, rho.to_data()) == rho


def layout_permutation(text: str) -> list[int]:
    """Index into a mul_ir axis for each entry of the ir_mul axis."""
    order: list[int] = []
    for term in text.split("+"):
        copies, size = int(term[0]), 2 * int(term[2]) + 1
        start = len(order)
        order += [start + copy * size + m for m in range(size) for copy in range(copies)]
    return order


def test_layouts_differ() -> None:
    group, g = parse_group("O3"), rotations(1)
    mul_ir, ir_mul = irreps(group, "2x1o"), irreps(group, "2x1o", "ir_mul")
    assert not torch.allclose(mul_ir.action(g).dense(), ir_mul.action(g).dense())


def test_axes_mean_what_their_order_says() -> None:
    group, g = parse_group("SO3"), rotations(1)
    x = torch.randn(4, 3, dtype=torch.float64, generator=rng())
    turned = x @ g[0].T
    channel_first = axes(group, "c v", {"c": 4}).action(g)
    component_first = axes(group, "v c", {"c": 4}).action(g)
    torch.testing.assert_close(channel_first.apply(x.flatten())[0], turned.flatten(), rtol=0, atol=1e-14)
    torch.testing.assert_close(component_first.apply(x.T.flatten())[0], turned.T.flatten(), rtol=0, atol=1e-14)
    assert not torch.allclose(component_first.apply(x.flatten())[0], turned.flatten())
    assert channel_first.blocks[0].shape == (4, 3)
    tensor = torch.randn(2, 3, 3, dtype=torch.float64, generator=rng())
    rank_two = axes(group, "c v w", {"c": 2}).action(g).apply(tensor.flatten())[0]
    torch.testing.assert_close(rank_two, (g @ tensor @ g.mT).flatten(), rtol=0, atol=1e-14)
    mixed = axes(group, "v c w", {"c": 2}).action(g).apply(tensor.transpose(0, 1).flatten())[0]
    torch.testing.assert_close(mixed, (g @ tensor @ g.mT).transpose(0, 1).flatten(), rtol=0, atol=1e-14)


def test_regular_representation_permutes_by_left_multiplication() -> None:
    group = parse_group("D3")
    elements = group.all_elements()
    matrices = regular(group, 1).action(elements).dense()
    assert matrices.sum(dim=1).eq(1).all()
    assert matrices.sum(dim=2).eq(1).all()
    for g, matrix in zip(elements, matrices, strict=True):
        images = matrix.argmax(dim=0)
        torch.testing.assert_close(g @ elements, elements[images], rtol=0, atol=1e-12)
    characters = torch.einsum("nii->n", matrices)
    assert characters.tolist() == [6, 0, 0, 0, 0, 0]
    with pytest.raises(GroupError, match="expected an element of D3"):
        regular(group, 1).action(parse_group("C4").elements)


def test_translations_act_trivially_and_parity_has_no_effect_without_inversion() -> None:
    e3, se3 = parse_group("E3"), parse_group("SE3")
    g = se3.sample(3, rng())
    moved = g.clone()
    moved[:, :3, 3] += 5.0
    rho = irreps(e3, "2x0o+1o+2e")
    assert torch.equal(rho.action(moved).dense(), rho.action(g).dense())
    assert torch.equal(rho.action(g[:, :3, :3]).dense(), rho.action(g).dense())
    assert not rho.derivative(se3.algebra[3:]).dense().any()
    assert rho.generators().count == 3
    torch.testing.assert_close(
        irreps(se3, "0o+1o+2o").action(g).dense(), irreps(se3, "0e+1e+2e").action(g).dense(), rtol=0, atol=0
    )
    inversion = e3.feature_elements
    assert not torch.equal(irreps(e3, "1o").action(inversion).dense(), irreps(e3, "1e").action(inversion).dense())


def test_trivial_blocks() -> None:
    so3, o3, g = parse_group("SO3"), parse_group("O3"), rotations(2)
    assert trivial(so3, 4).is_trivial
    assert irreps(so3, "3x0o").is_trivial
    assert irreps(o3, "3x0e").is_trivial
    assert not irreps(o3, "3x0o").is_trivial
    assert not axes(so3, "v", {}).is_trivial
    assert axes(so3, "c d", {"c": 2, "d": 3}).is_trivial
    weight = torch.randn(4, 5, generator=rng())
    assert torch.equal(trivial(so3, 4).action(g).left(weight), weight.expand(2, 4, 5))
    assert torch.equal(trivial(so3, 4).generators().left(weight), torch.zeros(3, 4, 5))


def test_equal_neighbours_are_merged_only_where_copies_are_contiguous() -> None:
    group, g = parse_group("O3"), rotations(1)
    rho = irreps(group, "2x0e+3x0e+2x1o+1o+1e")
    assert [block.shape for block in rho.blocks] == [(5,), (3, 3), (1, 3)]
    assert [str(factor) for block in rho.blocks for _, factor in block.factors] == ["1o", "1e"]
    split = irreps(group, "2x1o", "ir_mul") + irreps(group, "1x1o", "ir_mul")
    assert [block.shape for block in split.blocks] == [(3, 2), (3, 1)]
    first, second = (irreps(group, f"{n}x1o", "ir_mul").action(g).dense()[0] for n in (2, 1))
    dense = split.action(g).dense()[0]
    assert torch.equal(dense[:6, :6], first)
    assert torch.equal(dense[6:, 6:], second)
    assert not dense[:6, 6:].any()
    assert not dense[6:, :6].any()


def test_operators_are_differentiable_in_the_matrix_and_follow_its_dtype() -> None:
    rho = axes(parse_group("SO3"), "c v w", {"c": 2})
    operator = rho.generators()
    matrix = torch.randn(rho.dimension, 2, dtype=torch.float64, generator=rng(), requires_grad=True)
    assert torch.autograd.gradcheck(operator.left, (matrix,))
    assert torch.autograd.gradcheck(operator.right, (matrix.mT,))
    single = operator.to(torch.zeros((), dtype=torch.float32))
    assert single.left(matrix.float()).dtype == torch.float32
    assert single.dense().dtype == torch.float32
    assert operator.apply(torch.zeros(0, rho.dimension, dtype=torch.float64)).shape == (3, 0, rho.dimension)


@pytest.mark.parametrize("name", BUILDERS)
def test_data_round_trip_and_equality(name: str) -> None:
    rho = BUILDERS[name]()
    again = representation_from(rho.group, rho.to_data())
    assert again == rho
    assert hash(again) == hash(rho)
    assert again.blocks == rho.blocks
    assert rho + rho != rho
    assert (rho + rho).dimension == 2 * rho.dimension
    assert representation_from(rho.group, (rho + rho + rho).to_data()) == rho + (rho + rho)
    assert rho != "another type"


def test_descriptions() -> None:
    group = parse_group("O3")
    rho = irreps(group, "16x0e + 8x1o") + axes(group, "c v", {"c": 2}) + trivial(group, 7)
    assert repr(rho) == "16x0e+8x1o (mul_ir) + axes c v (c=2) + 7 x trivial"
    assert rho.to_data()["sum"][1] == {"axes": "c v", "sizes": {"c": 2}}
    assert repr(regular(parse_group("C4"), 4)) == "4 x regular (mul_ir)"
    assert irreps(parse_group("SO3"), "1o") != irreps(group, "1o")
    assert irreps(group, "2x1o") != irreps(group, "2x1o", "ir_mul")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: irreps(parse_group("SO2"), "1o"), "expected one of SO3, O3, SE3, E3 .* got SO2"),
        (lambda: irreps(parse_group("O3"), "1x1z"), "e3nn's notation, got '1x1z'"),
        (lambda: irreps(parse_group("O3"), ""), "at least one irrep"),
        (lambda: irreps(parse_group("O3"), "1o", "mul"), "choose mul_ir or ir_mul"),  # type: ignore[arg-type]
        (lambda: axes(parse_group("O3"), "c v", {}), r"exactly the axes \['c'\]"),
        (lambda: axes(parse_group("O3"), "width v", {"width": 4}), "names that begin with u, v or w"),
        (lambda: axes(parse_group("O3"), "v v", {}), "distinct axis names"),
        (lambda: axes(parse_group("O3"), "c v", {"c": 0}), "size of axis 'c' to be a positive"),
        (lambda: regular(parse_group("O3"), 1), "expected a finite group"),
        (lambda: trivial(parse_group("O3"), 0), "dimension to be a positive"),
        (lambda: trivial(parse_group("O3"), 1) + trivial(parse_group("SO3"), 1), "got O3 and SO3"),
        (
            lambda: representation_from(parse_group("O3"), {"irrep": "1o"}),
            "irreps, axes, regular, trivial, matrices, copies, grid or sum",
        ),
        (lambda: representation_from(parse_group("O3"), {"trivial": 1, "layout": "mul_ir"}), "got {'trivial': 1"),
        (lambda: representation_from(parse_group("O3"), {"sum": []}), "got {'sum'"),
        (lambda: representation_from(parse_group("O3"), {"axes": "c", "sizes": [1]}), "exactly the axes"),
        (lambda: irreps(parse_group("O3"), "2e").action(2 * torch.eye(3)), "orthogonal matrices"),
        (lambda: irreps(parse_group("SO3"), "2e").action(-torch.eye(3)), "determinant 1, got one with determinant -1"),
        (lambda: irreps(parse_group("O3"), "2e").derivative(torch.ones(3, 3)), "antisymmetric generators"),
    ],
)
def test_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(GroupError, match=message):
        build()


def test_shape_errors() -> None:
    operator = irreps(parse_group("O3"), "2x1o").generators()
    for call in (operator.left, operator.right, operator.apply):
        with pytest.raises(ShapeError, match="expected 6 entries"):
            call(torch.zeros(5, 5, dtype=torch.float64))
    with pytest.raises(ShapeError, match="one for each of 3 operators"):
        operator.left(torch.zeros(2, 6, 5, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"\(\.\.\., 3, 3\), got shape \(4, 4\)"):
        irreps(parse_group("O3"), "1o").action(torch.eye(4))


@pytest.mark.parametrize(
    "text", ["16x0e+8x1o", "1o", " 2x0e + 3x1o ", "2x0e+0x1o+2x0e", "3x2y+1x3y", "0e+1o+2e", "12x11o"]
)
def test_irreps_are_read_as_e3nn_reads_them(text: str) -> None:
    rho = irreps(parse_group("O3"), text)
    expected = import_e3nn().Irreps(text)
    words = "+".join(f"{multiplicity}x{ir}" for multiplicity, ir in expected if multiplicity)
    assert rho.to_data() == {"irreps": words, "layout": "mul_ir"}
    assert rho.dimension == expected.dim


@pytest.mark.parametrize(
    "text", ["1x1z", "x1o", "1x", "1o+", "-1x1o", "1o 2e", "1" * 30 + "x1o", "1x" + "9" * 5000 + "e"]
)
def test_irreps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(GroupError, match="e3nn's notation, got"):
        irreps(parse_group("O3"), text)


@pytest.mark.parametrize("name", BUILDERS)
def test_sums_of_irreps_are_named_for_e3nn(name: str) -> None:
    rho = BUILDERS[name]()
    o3, elements = import_e3nn(), rho.group.sample(3, rng())
    if rho.group.vector_dimension != 3 or any(len(block.factors) > 1 for block in rho.blocks):
        assert rho.irreps is None
        return
    expected = o3.Irreps(rho.irreps)
    assert expected.dim == rho.dimension
    theirs = irreps(rho.group, str(expected))
    characters = [torch.einsum("nii->n", each.action(elements).dense()) for each in (rho, theirs)]
    torch.testing.assert_close(*characters, rtol=0, atol=1e-9)


def test_vectors_by_axes_are_irreps_too() -> None:
    group = parse_group("O3")
    assert (trivial(group, 4) + axes(group, "v c", {"c": 8})).irreps == "4x0e+8x1o"
    assert repeated(irreps(group, "1x0e+1x2o"), 3).irreps == "3x0e+3x2o"
    assert axes(group, "v w", {}).irreps is None
    assert axes(parse_group("SO13"), "v", {}).irreps is None


def test_a_group_that_is_code_is_imported_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, code = (
        tmp_path / "was imported",
        "from pathlib import Path\nPath({!r}).touch()\ndef group(): return {}, None",
    )
    (tmp_path / "code_group_of_a_file.py").write_text(code.format(str(marker), "[[[0.0, -1.0], [1.0, 0.0]]]"))
    monkeypatch.syspath_prepend(tmp_path)
    rho = representation_from("code_group_of_a_file:group", {"axes": "c v", "sizes": {"c": 2}})
    assert rho == representation_from("code_group_of_a_file:group", {"axes": "c v", "sizes": {"c": 2}})
    assert (rho.group_name, repr(rho)) == ("code_group_of_a_file:group", "axes c v (c=2)")
    assert not marker.exists()
    assert rho.dimension == 4
    assert marker.exists()
    assert copy.deepcopy(rho) is rho
    assert parse_group(rho.group) is rho.group
