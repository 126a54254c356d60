"""Representations by matrices, with copies and on grids: against known actions, and refused when they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import (
    axes,
    irreps,
    matrices,
    on_grid,
    regular,
    repeated,
    representation_from,
    trivial,
)
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.errors import GroupError

TOLERANCE = 1e-10
SQUARE = ((1, 0), (0, 1))
QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turned(rho: Representation, basis: Tensor, copies: int = 1, layout: Any = "mul_ir") -> Representation:
    """The same representation in another basis, described by its matrices."""
    inverse = torch.linalg.inv(basis)
    images = {
        "algebra": (basis @ rho.generators().dense() @ inverse).tolist() if len(rho.group.feature_algebra) else [],
        "elements": (basis @ rho.element_actions().dense() @ inverse).tolist() if len(rho.group.elements) else [],
    }
    return matrices(rho.group, images, copies, layout)


def orthogonal(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=rng(seed)))[0]


def frequency(name: str, m: int) -> Representation:
    """The irrep of SO(2) or O(2) that turns m times as fast as the plane."""
    elements = [[[1.0, 0.0], [0.0, -1.0]]] if name == "O2" else []
    return matrices(parse_group(name), {"algebra": [[[0.0, -m], [m, 0.0]]], "elements": elements})


KNOWN: dict[str, Callable[[], Representation]] = {
    "SO2": lambda: axes(parse_group("SO2"), "v w", {}),
    "O2": lambda: axes(parse_group("O2"), "v w", {}),
    "SO3": lambda: irreps(parse_group("SO3"), "1x1o+1x2e"),
    "O3": lambda: irreps(parse_group("O3"), "1x0o+1x1e+1x2e+1x3o"),
    "SE3": lambda: irreps(parse_group("SE3"), "1x2e"),
    "E3": lambda: irreps(parse_group("E3"), "1x1o+1x2o"),
    "SO13": lambda: axes(parse_group("SO13"), "v w", {}),
    "O13": lambda: axes(parse_group("O13"), "v", {}),
    "C4": lambda: regular(parse_group("C4"), 1),
    "D4": lambda: regular(parse_group("D4"), 1),
    "D3": lambda: regular(parse_group("D3"), 1) + axes(parse_group("D3"), "v", {}),
}


def elements(group: Group, count: int, seed: int = 0) -> Tensor:
    """Random elements of every component."""
    generator = rng(seed)
    drawn = [group.sample(count, generator, index) for index in range(len(group.component_names))]
    return torch.cat(drawn)


def scale(tensor: Tensor) -> float:
    return max(1.0, float(tensor.abs().max()))


# Images of the generators


@pytest.mark.parametrize("name", KNOWN)
def test_matrices_are_the_known_representation_in_another_basis(name: str) -> None:
    rho = KNOWN[name]()
    basis = orthogonal(rho.dimension)
    other, g = turned(rho, basis), elements(rho.group, 3)
    expected = basis @ rho.action(g).dense() @ basis.T
    found = other.action(g).dense()
    assert float((found - expected).abs().max()) <= TOLERANCE * scale(expected)
    # Negative twin: with the wrong basis they differ.
    assert float((found - rho.action(g).dense()).abs().max()) > 1e-2


@pytest.mark.parametrize("name", KNOWN)
def test_action_is_a_homomorphism_across_components(name: str) -> None:
    rho = turned(KNOWN[name](), torch.randn(KNOWN[name]().dimension, KNOWN[name]().dimension, dtype=torch.float64))
    g = elements(rho.group, 2)
    first, second = g.repeat_interleave(len(g), dim=0), g.repeat(len(g), 1, 1)
    composed = rho.action(first @ second).dense()
    product = rho.action(first).dense() @ rho.action(second).dense()
    assert float((product - composed).abs().max()) <= 1e-9 * scale(composed)
    reversed_order = rho.action(second).dense() @ rho.action(first).dense()
    abelian = name in ("SO2", "C4")
    assert abelian or float((reversed_order - composed).abs().max()) > 1e-2


@given(st.sampled_from(["SO2", "O2", "SO3", "O3", "SO13", "C4", "D4"]), st.integers(0, 2**31))
@settings(max_examples=40)
def test_homomorphism_of_random_pairs_in_random_bases(name: str, seed: int) -> None:
    rho, generator = KNOWN[name](), rng(seed)
    rho = turned(rho, orthogonal(rho.dimension, seed))
    component = seed % len(rho.group.component_names)
    g, h = rho.group.sample(1, generator, component), rho.group.sample(1, generator)
    composed = rho.action(g @ h).dense()
    assert float((rho.action(g).dense() @ rho.action(h).dense() - composed).abs().max()) <= 1e-9 * scale(composed)


def test_images_that_are_no_representation_are_no_homomorphism() -> None:
    wrong = torch.randn(3, 4, 4, dtype=torch.float64)
    rho = matrices(parse_group("SO3"), {"algebra": wrong.tolist(), "elements": []})
    g, h = rho.group.sample(2, rng()).unsqueeze(1)
    assert float((rho.action(g).dense() @ rho.action(h).dense() - rho.action(g @ h).dense()).abs().max()) > 1e-2


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, torch.pi - 1e-4, torch.pi - 1e-9, torch.pi])
@pytest.mark.parametrize("inverted", [False, True])
def test_accurate_near_the_identity_and_near_half_turns(angle: float, inverted: bool) -> None:
    group = parse_group("O3")
    rho = irreps(group, "1x1o+1x2e+1x3o")
    basis = orthogonal(rho.dimension)
    axis = torch.nn.functional.normalize(torch.randn(3, dtype=torch.float64), dim=0)
    g = torch.linalg.matrix_exp(angle * torch.einsum("a,aij->ij", axis, group.algebra))
    g = -g if inverted else g
    found = turned(rho, basis).action(g).dense()
    assert float((found - basis @ rho.action(g).dense() @ basis.T).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("name", ["SO2", "O2"])
def test_frequencies_in_the_plane(name: str, m: int) -> None:
    rho = frequency(name, m)
    for angle in (0.3, 3.0, torch.pi, -2.0):
        g = torch.linalg.matrix_exp(angle * QUARTER)
        assert torch.allclose(rho.action(g).dense()[0], torch.linalg.matrix_exp(m * angle * QUARTER), atol=1e-9)
    if name == "O2":
        reflection = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        assert torch.equal(rho.action(rho.group.elements[0]).dense()[0], reflection)


@pytest.mark.parametrize("name", [name for name in KNOWN if not name.startswith(("C", "D"))])
def test_derivative_is_the_derivative_of_the_action(name: str) -> None:
    rho = turned(KNOWN[name](), orthogonal(KNOWN[name]().dimension))
    algebra = rho.group.feature_algebra
    step = 1e-4
    plus, minus = (torch.linalg.matrix_exp(sign * step * algebra) for sign in (1, -1))
    numerical = (rho.action(plus).dense() - rho.action(minus).dense()) / (2 * step)
    assert torch.allclose(numerical, rho.generators().dense(), atol=1e-6)  # truncation: step^2 times the third power
    assert not torch.allclose(numerical, rho.generators().dense().mT, atol=1e-2)
    # Linear in the generator, not only right on the basis.
    mixed = 0.5 * algebra[:1] - 2.0 * algebra[-1:]
    expected = 0.5 * rho.generators().dense()[:1] - 2.0 * rho.generators().dense()[-1:]
    assert torch.allclose(rho.derivative(mixed).dense(), expected)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_copies_and_layout(layout: Any) -> None:
    group = parse_group("SO3")
    images = irreps(group, "1x2e").generators().dense().tolist()
    rho = matrices(group, {"algebra": images, "elements": []}, 3, layout)
    known, g = irreps(group, "3x2e", layout), group.sample(4, rng())
    assert torch.allclose(rho.action(g).dense(), known.action(g).dense(), atol=TOLERANCE)
    assert torch.allclose(rho.generators().dense(), known.generators().dense(), atol=TOLERANCE)
    other = matrices(group, {"algebra": images, "elements": []}, 3, "ir_mul" if layout == "mul_ir" else "mul_ir")
    assert not torch.allclose(rho.action(g).dense(), other.action(g).dense(), atol=1e-2)


def test_elements_in_single_precision_are_recognised() -> None:
    for name in ("SO3", "O3", "SO13", "D4"):
        rho = turned(KNOWN[name](), orthogonal(KNOWN[name]().dimension))
        g = elements(rho.group, 2)
        assert torch.allclose(rho.action(g.float()).dense(), rho.action(g).dense(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("SO3", torch.diag(torch.tensor([1.0, 1.0, -1.0]))),
        ("SO3", 2 * torch.eye(3)),
        ("O3", torch.diag(torch.tensor([1.0, 2.0, 0.5]))),
        ("SO2", torch.diag(torch.tensor([1.0, -1.0]))),
        ("SO2", 1.5 * torch.eye(2)),
        ("SO13", torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))),
        ("SO13", torch.diag(torch.tensor([2.0, 0.5, 1.0, 1.0]))),
        ("D4", torch.linalg.matrix_exp(0.3 * QUARTER)),
    ],
)
def test_a_matrix_outside_the_group_is_refused(name: str, matrix: Tensor) -> None:
    with pytest.raises(GroupError, match=f"expected an element of {name}, got a matrix"):
        turned(KNOWN[name](), orthogonal(KNOWN[name]().dimension)).action(matrix)


# Copies of a representation


@pytest.mark.parametrize("name", KNOWN)
def test_repeated_puts_the_copies_of_one_entry_next_to_each_other(name: str) -> None:
    rho = KNOWN[name]() + trivial(KNOWN[name]().group, 2)
    many, g = repeated(rho, 3), elements(rho.group, 2)
    eye = torch.eye(3, dtype=torch.float64)
    assert many.dimension == 3 * rho.dimension
    expected = torch.stack([torch.kron(matrix, eye) for matrix in rho.action(g).dense()])
    assert torch.allclose(many.action(g).dense(), expected)
    assert not torch.allclose(many.action(g).dense(), torch.stack([torch.kron(eye, m) for m in rho.action(g).dense()]))
    if len(rho.group.feature_algebra):
        derived = torch.stack([torch.kron(matrix, eye) for matrix in rho.generators().dense()])
        assert torch.allclose(many.generators().dense(), derived)


def test_repeated_irreps_are_the_layout_with_components_first() -> None:
    group = parse_group("O3")
    g = elements(group, 2)
    left, right = repeated(irreps(group, "1x2e"), 4), irreps(group, "4x2e", "ir_mul")
    assert torch.allclose(left.action(g).dense(), right.action(g).dense())


# Grids


def on_plane(name: str, size: int = 3, frame: Any = SQUARE, values: Representation | None = None) -> Representation:
    return on_grid(values or trivial(parse_group(name), 1), (size, size), frame)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_quarter_turns_of_a_grid_are_those_of_torch(size: int) -> None:
    # Index 0 runs along x, index 1 along y: g moves the value at u to g u, as rot90 does from axis 0 to axis 1.
    image = torch.randn(size, size, dtype=torch.float64)
    rho = on_plane("C4", size)
    for turns, g in enumerate(parse_group("C4").all_elements()):
        acted = rho.action(g).apply(image.flatten())[0].reshape(size, size)
        assert torch.equal(acted, torch.rot90(image, turns, (0, 1)))
        assert turns % 2 == 0 or not torch.equal(acted, torch.rot90(image, -turns, (0, 1)))


@pytest.mark.parametrize("size", [2, 3])
def test_reflections_of_a_grid_are_flips(size: int) -> None:
    image = torch.randn(size, size, dtype=torch.float64)
    reflection = parse_group("D4").elements[1]  # y -> -y
    for frame, axis in ((SQUARE, 1), (((0, 1), (1, 0)), 0), (((0, -1), (1, 0)), 0)):
        rho = on_plane("D4", size, frame)
        acted = rho.action(reflection).apply(image.flatten())[0].reshape(size, size)
        assert torch.equal(acted, image.flip(axis))
        assert not torch.equal(acted, image.flip(1 - axis))


def test_a_frame_that_swaps_the_axes_turns_the_other_way() -> None:
    image = torch.randn(3, 3, dtype=torch.float64)
    acted = on_plane("C4", 3, ((0, 1), (1, 0))).action(QUARTER).apply(image.flatten())[0].reshape(3, 3)
    assert torch.equal(acted, torch.rot90(image, -1, (0, 1)))


def test_inversion_of_a_grid_in_space() -> None:
    rho = on_grid(trivial(parse_group("O3"), 2), (3, 3, 3), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    volume = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    acted = rho.element_actions().apply(volume.flatten())[0].reshape(volume.shape)
    assert torch.equal(acted, volume.flip(1, 2, 3))
    assert not torch.equal(acted, volume)


def test_a_frame_takes_coordinates_to_indices_and_not_back() -> None:
    # Index 0 runs along y, index 1 along z, index 2 along x.
    frame = ((0, 1, 0), (0, 0, 1), (1, 0, 0))
    group, volume = parse_group("O3"), torch.randn(3, 3, 3, dtype=torch.float64)
    rho = on_grid(trivial(group, 1), (3, 3, 3), frame)
    for axis, planes in enumerate([(0, 1), (1, 2), (2, 0)]):  # about x: from y to z; about y: from z to x; ...
        g = torch.linalg.matrix_exp(torch.pi / 2 * group.algebra[axis])
        acted = rho.action(g).apply(volume.flatten())[0].reshape(3, 3, 3)
        assert torch.allclose(acted, torch.rot90(volume, 1, planes))
        assert not torch.allclose(acted, torch.rot90(volume, 1, planes[::-1]))


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_values_turn_while_points_move(layout: Any) -> None:
    group = parse_group("D4")
    values = regular(group, 2, layout) + axes(group, "v", {}) + trivial(group, 1)
    rho = on_grid(values, (3, 3), SQUARE)
    field = torch.randn(values.dimension, 3, 3, dtype=torch.float64)
    points = on_plane("D4")
    for g in group.all_elements():
        moved = points.action(g).apply(field.flatten(1))[0]
        expected = values.action(g).dense()[0] @ moved
        acted = rho.action(g).apply(field.flatten())[0].reshape(expected.shape)
        assert torch.allclose(acted, expected)
    assert not torch.allclose(acted, moved)


@pytest.mark.parametrize("name", ["C4", "D4"])
def test_grid_actions_of_a_finite_group_are_an_exact_homomorphism(name: str) -> None:
    rho = on_plane(name, 4, ((0, -1), (1, 0)))
    g = parse_group(name).all_elements()
    first, second = g.repeat_interleave(len(g), dim=0), g.repeat(len(g), 1, 1)
    images = rho.action(g).dense()
    assert torch.equal(images.sum(1), torch.ones(len(g), 16).double())
    assert set(images.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(rho.action(first).dense() @ rho.action(second).dense(), rho.action(first @ second).dense())


def test_the_derivative_on_a_grid_is_exact_for_linear_and_quadratic_functions() -> None:
    # d/dt f(exp(-tA) u) at t = 0; a central difference is exact for quadratics, the border's one-sided one is not.
    size = 7
    rho = on_plane("SO2", size)
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x, y = torch.meshgrid(at, at, indexing="ij")
    inner = (slice(1, -1), slice(1, -1))
    derived = rho.generators().apply((2 * x - y).flatten())[0].reshape(size, size)
    assert torch.allclose(derived, 2 * y + x)  # A u = (-y, x), the gradient is (2, -1)
    derived = rho.generators().apply((x * x - 3 * x * y).flatten())[0].reshape(size, size)
    expected = y * (2 * x - 3 * y) + 3 * x * x
    assert torch.allclose(derived[inner], expected[inner])
    assert not torch.allclose(derived, expected)
    invariant = rho.generators().apply((x * x + y * y).flatten())[0].reshape(size, size)
    assert float(invariant[inner].abs().max()) <= 1e-12


def test_the_derivative_on_a_grid_is_that_of_the_resampled_action() -> None:
    size, step = 9, 1e-4
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x, y = torch.meshgrid(at, at, indexing="ij")
    plane = (3 * x - 2 * y + 1).flatten()
    rho = on_plane("SO2", size)
    plus, minus = (torch.linalg.matrix_exp(sign * step * QUARTER) for sign in (1, -1))
    numerical = (rho.action(plus).apply(plane)[0] - rho.action(minus).apply(plane)[0]) / (2 * step)
    derived = rho.generators().apply(plane)[0]
    inner = torch.zeros(size, size, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    # Interpolation is exact for linear functions, so only the difference quotient's own error remains.
    assert torch.allclose(numerical[inner.flatten()], derived[inner.flatten()], atol=1e-6)
    assert not torch.allclose(numerical[inner.flatten()], -derived[inner.flatten()], atol=1e-2)


def test_resampling_is_exact_for_linear_functions_inside() -> None:
    size = 9
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x, y = torch.meshgrid(at, at, indexing="ij")
    g = torch.linalg.matrix_exp(0.4 * QUARTER)
    acted = on_plane("SO2", size).action(g).apply((3 * x - 2 * y + 1).flatten())[0].reshape(size, size)
    back = torch.linalg.inv(g)
    u, v = back[0, 0] * x + back[0, 1] * y, back[1, 0] * x + back[1, 1] * y
    inside = x.square() + y.square() <= 16
    assert torch.allclose(acted[inside], (3 * u - 2 * v + 1)[inside])
    assert not torch.allclose(acted[inside], (3 * x - 2 * y + 1)[inside])


@pytest.mark.parametrize("name", ["SO2", "SO3", "C4"])
def test_a_grid_of_a_group_without_generators_of_one_kind(name: str) -> None:
    group = parse_group(name)
    d = group.vector_dimension
    rho = on_grid(trivial(group, 2), (3,) * d, torch.eye(d).int().tolist())
    assert rho.element_actions().count == len(group.elements)
    assert rho.generators().count == len(group.algebra)
    assert rho.generators().dense().shape == (len(group.algebra), rho.dimension, rho.dimension)


# Descriptions


DESCRIBED: dict[str, Callable[[], Representation]] = {
    "matrices of a finite group": lambda: turned(KNOWN["D4"](), orthogonal(8), 2, "ir_mul"),
    "matrices of a Lie group": lambda: turned(KNOWN["O3"](), orthogonal(16), 2),
    "copies": lambda: repeated(axes(parse_group("SO13"), "v w", {}), 3),
    "copies of a sum": lambda: repeated(irreps(parse_group("O3"), "1x1o") + trivial(parse_group("O3"), 2), 3),
    "grid": lambda: on_plane("D4", 3, ((0, -1), (1, 0)), regular(parse_group("D4"), 2)),
    "grid of copies, in a sum": lambda: (
        on_plane("C4", 3, SQUARE, repeated(trivial(parse_group("C4"), 2), 2)) + regular(parse_group("C4"), 1)
    ),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_descriptions_survive_json(name: str) -> None:
    rho = DESCRIBED[name]()
    back = representation_from(rho.group, json.loads(json.dumps(rho.to_data())))
    assert back == rho
    assert back.blocks == rho.blocks
    g = elements(rho.group, 1)
    assert torch.equal(back.action(g).dense(), rho.action(g).dense())
    assert back != DESCRIBED["grid" if name != "grid" else "copies"]()


def test_descriptions_in_words() -> None:
    c4 = parse_group("C4")
    assert str(turned(regular(c4, 1), orthogonal(4), 3)) == "3 x frequencies 0, 1, 2 (mul_ir)"
    assert str(repeated(trivial(c4, 2) + regular(c4, 1), 3)) == "(2 x trivial + 1 x regular (mul_ir)) x 3"
    assert str(on_plane("C4", 5)) == "1 x trivial on a 5 x 5 grid"


C4_IMAGES = {"algebra": [], "elements": [[[0.0, -1.0], [1.0, 0.0]]]}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: matrices(parse_group("C4"), {}), "under 'algebra' and 'elements', got dict"),
        (lambda: matrices(parse_group("C4"), None), "under 'algebra' and 'elements', got NoneType"),  # type: ignore[arg-type]
        (lambda: matrices(parse_group("C4"), {"algebra": [], "elements": [[["a"]]]}), "expected lists of matrices"),
        (lambda: matrices(parse_group("C4"), {"algebra": [], "elements": [[[1.0], [1.0, 2.0]]]}), "lists of matrices"),
        (
            lambda: matrices(parse_group("D4"), C4_IMAGES),
            "0 generators and 2 elements for a representation of D4, got 0 and 1",
        ),
        (lambda: matrices(parse_group("SO2"), C4_IMAGES), "expected 1 generators and 0 elements"),
        (
            lambda: matrices(parse_group("C4"), {"algebra": [], "elements": [[[1.0, 0.0]]]}),
            "square matrices of one size",
        ),
        (
            lambda: matrices(parse_group("O2"), {"algebra": [[[0.0]]], "elements": [torch.eye(2).tolist()]}),
            "square matrices of one size",
        ),
        (lambda: matrices(parse_group("C4"), {"algebra": [], "elements": [[[float("nan")]]]}), "expected finite"),
        (lambda: matrices(parse_group("C4"), C4_IMAGES, 0), "the number of copies to be a positive"),
        (lambda: matrices(parse_group("C4"), C4_IMAGES, 1, "ul"), "expected a layout"),  # type: ignore[arg-type]
        (lambda: repeated(trivial(parse_group("C4"), 1), 0), "the number of copies to be a positive"),
        (lambda: on_plane("C4", 3, ((1, 0),)), "signed permutation of size 2"),
        (lambda: on_plane("C4", 3, ((1, 0), (1,))), "signed permutation of size 2"),
        (lambda: on_plane("C4", 3, ((1, 1), (0, 1))), "signed permutation of size 2"),
        (lambda: on_plane("C4", 3, ((0.6, 0.8), (-0.8, 0.6))), "signed permutation of size 2"),
        (lambda: on_plane("C4", 3, ((2, 0), (0, 1))), "signed permutation of size 2"),
        (lambda: on_plane("C4", 0), "a grid with 2 axes of points"),
        (lambda: on_grid(trivial(parse_group("C4"), 1), (3,), SQUARE), "a grid with 2 axes of points"),
        (lambda: on_grid(trivial(parse_group("O3"), 1), (3, 3), SQUARE), "signed permutation of size 3"),
    ],
)
def test_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(GroupError, match=message):
        build()


@pytest.mark.parametrize(
    "data",
    [
        {"matrices": C4_IMAGES},
        {"matrices": C4_IMAGES, "copies": 1, "note": ""},
        {"matrices": 3, "copies": 1},
        {"copies": 2},
        {"copies": 2, "of": {"trivial": 1}, "layout": "mul_ir"},
        {"grid": [3, 3], "of": {"trivial": 1}},
        {"grid": 3, "frame": [[1, 0], [0, 1]], "of": {"trivial": 1}},
    ],
)
def test_malformed_descriptions_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(GroupError, match="matrices, copies, grid or sum, got"):
        representation_from(parse_group("C4"), data)


def test_pseudo_tensors_are_tensors_times_a_sign() -> None:
    group = parse_group("O13")
    plain, pseudo = axes(group, "v w c", {"c": 2}), axes(group, "v w c", {"c": 2}, (-1, 1, -1))
    assert torch.equal(pseudo.generators().dense(), plain.generators().dense())
    signs = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)[:, None, None]
    assert torch.allclose(pseudo.element_actions().dense(), signs * plain.element_actions().dense())
    assert representation_from(group, pseudo.to_data()) == pseudo
    bare = TensorType(axes(group, "v w", {}, (-1, 1, -1)), (-3, -2))
    assert bare.with_copies((-1,), torch.zeros(4, 4, 2)).rho == pseudo
    for wrong in ((-1, 1), (-1, 1, 2)):
        with pytest.raises(GroupError, match="a sign, 1 or -1, for each of the 3 elements"):
            axes(group, "v", {}, wrong)
