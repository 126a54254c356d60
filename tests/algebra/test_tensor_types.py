"""How whole tensors transform: axes in any order, grids, further copies, descriptions and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, irreps, matrices, on_grid, regular, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.errors import GroupError, ShapeError

SQUARE = ((1, 0), (0, 1))
SO3, O3, SO13, C4, D4 = (parse_group(name) for name in ("SO3", "O3", "SO13", "C4", "D4"))


def element(group: Group, component: int = 0) -> Tensor:
    return group.sample(1, torch.Generator().manual_seed(1), component)[0]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("axis", [-1, -2, -3, -4])
def test_a_vector_index_on_any_axis(axis: int) -> None:
    shape = [2, 5, 4]
    shape.insert(4 + axis, 3)
    x, g = random(*shape), element(O3, 1)
    expected = torch.tensordot(g, x, dims=([1], [axis % 4])).movedim(0, axis)
    acted = TensorType(axes(O3, "v", {}), (axis,)).act(g, x)
    assert torch.allclose(acted, expected)
    assert acted.shape == x.shape
    assert not torch.allclose(acted, x)


@pytest.mark.parametrize(
    ("names", "sizes", "positions", "equation"),
    [
        ("v w", {}, (-2, -1), "ux,vy,bxy->buv"),
        ("v w", {}, (-1, -2), "ux,vy,bxy->buv"),
        ("v w", {}, (-3, -1), "ux,vy,xby->ubv"),
        ("c v", {"c": 5}, (-3, -1), "ux,cbx->cbu"),
        ("v c", {"c": 5}, (-1, -3), "ux,cbx->cbu"),
        ("v c", {"c": 5}, (-2, -1), "ux,bxc->buc"),
    ],
)
def test_tensors_with_axes_in_any_order(
    names: str, sizes: dict[str, int], positions: tuple[int, ...], equation: str
) -> None:
    lengths = {"x": 3, "y": 3, "c": 5, "b": 4}
    x, g = random(*(lengths[letter] for letter in equation.split("->")[0].split(",")[-1])), element(SO3)
    operands = [g] * equation.count(",") + [x]
    acted = TensorType(axes(SO3, names, sizes), positions).act(g, x)
    assert torch.allclose(acted, torch.einsum(equation, *operands))


def test_the_order_of_the_axes_matters_where_they_transform_differently() -> None:
    rho = matrices(C4, {"algebra": [], "elements": [torch.kron(C4.elements[0], torch.eye(2).double()).tolist()]})
    x, g = random(4, 2, 2), C4.elements[0]
    first, second = TensorType(rho, (-2, -1)).act(g, x), TensorType(rho, (-1, -2)).act(g, x)
    assert torch.allclose(first, torch.einsum("ux,bxc->buc", g, x))
    assert torch.allclose(second, torch.einsum("ux,bcx->bcu", g, x))
    assert not torch.allclose(first, second)


def test_irreps_on_the_middle_axis_and_copies_elsewhere() -> None:
    rho, g = irreps(O3, "1x0e+1x1o+1x2e"), element(O3, 1)
    x = random(2, 9, 6)
    acted = TensorType(rho, (-2,)).act(g, x)
    assert torch.allclose(acted, torch.einsum("ij,bjc->bic", rho.action(g).dense()[0], x))
    assert not torch.allclose(acted, torch.einsum("ij,bjc->bic", rho.action(-g).dense()[0], x))


def test_acting_keeps_the_dtype() -> None:
    kind = TensorType(axes(SO13, "v", {}))
    assert kind.act(element(SO13), torch.ones(2, 4)).dtype == torch.float32
    assert kind.act(element(SO13), torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_acting_composes() -> None:
    kind, x = TensorType(axes(SO13, "v w", {}), (-3, -1)), random(4, 2, 4)
    g, h = SO13.sample(2, torch.Generator().manual_seed(0))
    assert torch.allclose(kind.act(g, kind.act(h, x)), kind.act(g @ h, x))
    assert not torch.allclose(kind.act(h, kind.act(g, x)), kind.act(g @ h, x))


# Grids


def test_scalar_fields_turn_as_torch_turns_them() -> None:
    image = random(2, 3, 4, 4)
    kind = TensorType(trivial(C4, 1), (), (-2, -1), SQUARE)
    for turns, g in enumerate(C4.all_elements()):
        assert torch.equal(kind.act(g, image), torch.rot90(image, turns, (-2, -1)))
    assert not torch.equal(kind.act(g, image), image)


@pytest.mark.parametrize("frame", [SQUARE, ((0, 1), (1, 0)), ((0, -1), (1, 0)), ((-1, 0), (0, 1))])
@pytest.mark.parametrize("grid", [(-2, -1), (-1, -2), (-4, -2), (0, 2)])
def test_fields_agree_with_the_representation_on_a_grid(frame: Any, grid: tuple[int, int]) -> None:
    grid = (grid[0] - 4 if grid[0] >= 0 else grid[0], grid[1] - 4 if grid[1] >= 0 else grid[1])
    shape = [2, 5, 2, 5]
    rest = [axis for axis in range(-4, 0) if axis not in grid]
    for axis in range(-4, 0):
        shape[axis] = 3 if axis in grid else 2
    x = random(*shape)
    values = axes(D4, "v", {})
    field, points = TensorType(values, (rest[1],), grid, frame), on_grid(values, (3, 3), frame)
    flat = x.permute([rest[0], rest[1], *grid]).flatten(1)
    for g in D4.all_elements():
        expected = points.action(g).apply(flat)[0].reshape(2, 2, 3, 3)
        assert torch.allclose(field.act(g, x).permute([rest[0], rest[1], *grid]), expected)


def test_quarter_turns_swap_the_sides_of_an_oblong_grid() -> None:
    image = random(2, 3, 5)
    kind = TensorType(trivial(C4, 1), (), (-2, -1), SQUARE)
    assert torch.equal(kind.act(C4.elements[0], image), torch.rot90(image, 1, (-2, -1)))
    assert kind.act(C4.elements[0], image).shape == (2, 5, 3)


def test_a_cube_turns_about_every_axis() -> None:
    volume, eye = random(3, 3, 3), ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    kind = TensorType(trivial(O3, 1), (), (-3, -2, -1), eye)
    for axis, planes in enumerate([(1, 2), (2, 0), (0, 1)]):
        g = torch.linalg.matrix_exp(torch.pi / 2 * O3.algebra[axis])
        assert torch.equal(kind.act(g, volume), torch.rot90(volume, 1, planes))
    assert torch.equal(kind.act(O3.elements[0], volume), volume.flip(0, 1, 2))


@pytest.mark.parametrize("frame", [((1, 0, 0), (0, 1, 0), (0, 0, 1)), ((0, 1, 0), (0, 0, 1), (1, 0, 0))])
def test_a_cube_turns_about_its_diagonal(frame: Any) -> None:
    volume = random(2, 3, 3, 3)
    kind = TensorType(trivial(O3, 1), (), (-3, -2, -1), frame)
    points = on_grid(trivial(O3, 1), (3, 3, 3), frame)
    third = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)  # x -> y -> z -> x
    for g in (third, -third, third @ torch.linalg.matrix_exp(torch.pi / 2 * O3.algebra[0])):
        expected = points.action(g).apply(volume.flatten(1))[0].reshape(volume.shape)
        assert torch.equal(kind.act(g, volume), expected)
    # x(g^-1 u): what lay along x lies along y.
    assert torch.equal(kind.act(third, volume), volume.permute(0, 3, 1, 2))
    assert not torch.equal(kind.act(third, volume), volume.permute(0, 2, 3, 1))


@pytest.mark.parametrize("angle", [0.3, torch.pi / 4, torch.pi / 2 + 1e-3])
def test_an_element_that_moves_points_off_the_grid_is_refused(angle: float) -> None:
    group = parse_group("SO2")
    kind, image = TensorType(trivial(group, 1), (), (-2, -1), SQUARE), random(3, 3)
    g = torch.linalg.matrix_exp(angle * group.algebra[0])
    with pytest.raises(GroupError, match="maps the points of a grid to points"):
        kind.act(g, image)
    quarter = torch.linalg.matrix_exp(torch.pi / 2 * group.algebra[0])
    assert torch.equal(kind.act(quarter, image), torch.rot90(image, 1))


# Invariants


def test_invariants() -> None:
    x, g = random(3, 2), element(O3)
    assert torch.equal(TensorType(trivial(O3, 1), ()).act(g, x), x)
    assert torch.equal(TensorType(trivial(O3, 2)).act(g, x), x)
    assert TensorType(trivial(O3, 1), ()).is_invariant
    assert TensorType(irreps(O3, "2x0e")).is_invariant
    assert not TensorType(irreps(O3, "2x0o")).is_invariant
    assert not TensorType(regular(C4, 1)).is_invariant
    # The values of a scalar field do not change, its points do.
    assert TensorType(trivial(C4, 1), (), (-2, -1), SQUARE).is_invariant


# Rows and copies


@pytest.mark.parametrize("positions", [(), (-1,), (-3,), (-2, -1), (-1, -2), (-1, -3), (-4, -1, -3)])
def test_rows_and_back(positions: tuple[int, ...]) -> None:
    x = random(2, 3, 4, 5)
    size = int(torch.tensor([x.shape[axis] for axis in positions]).prod()) if positions else 1
    kind = TensorType(trivial(O3, size), positions)
    rows = kind.on_rows(x)
    assert rows.shape[-1] == size
    assert torch.equal(kind.off_rows(rows, x), x)
    letters = "abcd"
    if positions:
        rest = [letter for index, letter in enumerate(letters, start=-4) if index not in positions]
        order = "".join(rest) + "".join(letters[axis] for axis in positions)
        assert torch.equal(rows, torch.einsum(f"abcd->{order}", x).flatten(-len(positions)))


BASES: dict[str, Representation] = {
    "vector": axes(O3, "v", {}),
    "rank two": axes(O3, "v w", {}),
    "irreps": irreps(O3, "1x0o+1x2e"),
    "matrices": matrices(C4, {"algebra": [], "elements": [[[0.0, -1.0], [1.0, 0.0]]]}),
}


@pytest.mark.parametrize("name", BASES)
def test_copies_vary_fastest_after_the_components(name: str) -> None:
    rho = BASES[name]
    group, count = rho.group, 2 if name == "rank two" else 1
    lengths = (3, 3) if name == "rank two" else (rho.dimension,)
    x = random(4, 5, *lengths)  # rows, channels, components
    kind = TensorType(rho, tuple(range(-count, 0)))
    wide = kind.with_copies((-count - 1,), x)
    assert wide.axes == (*kind.axes, -count - 1)
    assert wide.rho.dimension == 5 * rho.dimension
    g = element(group)
    assert torch.allclose(wide.act(g, x), kind.act(g, x))
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(wide.rho.action(g).dense()[0], torch.kron(rho.action(g).dense()[0], eye))
    assert not torch.allclose(wide.rho.action(g).dense()[0], torch.kron(eye, rho.action(g).dense()[0]))


def test_copies_of_vectors_are_described_by_axes_and_of_invariants_as_trivial() -> None:
    x = random(4, 5, 3)
    assert str(TensorType(axes(O3, "v", {})).with_copies((-2,), x)) == "axes v c (c=5) on axes -1, -2"
    assert TensorType(trivial(O3, 1), ()).with_copies((-2, -1), x).rho == trivial(O3, 15)
    kind = TensorType(axes(O3, "v", {}))
    assert kind.with_copies((), x) == kind


def test_copies_on_two_axes() -> None:
    x, g = random(4, 5, 3, 2), element(O3)
    kind = TensorType(irreps(O3, "1x1o"), (-2,))
    wide = kind.with_copies((-3, -1), x)
    assert wide.axes == (-2, -3, -1)
    assert torch.allclose(wide.act(g, x), kind.act(g, x))
    assert torch.equal(wide.on_rows(x), x.permute(0, 2, 1, 3).flatten(1))


def test_copies_on_a_grid_keep_the_grid() -> None:
    x, g = random(2, 3, 4, 4), C4.elements[0]
    kind = TensorType(trivial(C4, 1), (), (-2, -1), SQUARE)
    wide = kind.with_copies((-3,), x)
    assert (wide.grid, wide.frame, wide.axes) == (kind.grid, kind.frame, (-3,))
    assert torch.equal(wide.act(g, x), kind.act(g, x))


# Descriptions and errors


@pytest.mark.parametrize(
    "kind",
    [
        TensorType(irreps(O3, "2x0e+1x1o")),
        TensorType(axes(O3, "v c", {"c": 4}), (-1, -3)),
        TensorType(trivial(O3, 1), ()),
        TensorType(regular(C4, 2), (-3,), (-2, -1), ((0, -1), (1, 0))),
    ],
    ids=str,
)
def test_descriptions_survive_json(kind: TensorType) -> None:
    data = json.loads(json.dumps(kind.to_data()))
    back = TensorType.from_data(kind.rho.group, data)
    assert back == kind
    assert back.to_data() == kind.to_data()
    assert back != TensorType(kind.rho, (*kind.axes, -5), kind.grid, kind.frame)


def test_descriptions_in_words() -> None:
    assert str(TensorType(irreps(O3, "1x1o"))) == "1x1o (mul_ir)"
    assert str(TensorType(irreps(O3, "1x1o"), (-2,))) == "1x1o (mul_ir) on axes -2"
    assert str(TensorType(trivial(C4, 1), (), (-2, -1), SQUARE)) == "1 x trivial, grid -2, -1"


def test_axes_that_do_not_fit_are_refused() -> None:
    kind = TensorType(axes(O3, "v", {}), (-2,))
    with pytest.raises(ShapeError, match=r"expected 3 entries along the axes \[-2\] for axes v, got shape \(4, 5\)"):
        kind.act(element(O3), random(4, 5))
    assert kind.act(element(O3), random(3, 5)).shape == (3, 5)
