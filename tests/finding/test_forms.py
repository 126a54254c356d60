"""A branch's matrix on any axes and its convolution kernel, against einsum and torch's convolutions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.penalty import Commutator
from surgeon.algebra.representations.build import irreps, on_grid, regular, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.errors import PlanError, ShapeError
from surgeon.finding.forms import (
    ConvolutionForm,
    Form,
    LinearForm,
    block_mask,
    form_of,
    row_representations,
    rows_of,
    some_rows,
    some_rows_out,
)
from surgeon.plan import Convolution, Site

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
SQUARE = ((1, 0), (0, 1))


def applied(form: Form, weight: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """W x, where ``like`` has the shape of the op's output."""
    nothing = torch.zeros_like(like) if isinstance(form, LinearForm) else torch.zeros((), dtype=like.dtype)
    return form.add(nothing, (weight,), x)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# Matrices


@pytest.mark.parametrize(
    ("axes_in", "axes_out", "equation"),
    [
        # o, p and i, j are the parts of W's two sides; W's shape is (o p, i j).
        ((-1,), (-1,), "oi,abi->abo"),
        ((-2,), (-2,), "oi,aib->aob"),
        ((-1,), (-2,), "oi,abi->aob"),
        ((-2,), (-1,), "oi,aib->abo"),
        ((-3, -2), (-3, -2), "opij,ijb->opb"),
        ((-2, -3), (-2, -3), "opij,jib->pob"),
        ((-1, -3), (-1, -3), "opij,jbi->pbo"),
        ((-2, -1), (-2, -1), "opij,aij->aop"),
        ((-2, -1), (-1, -2), "opij,aij->apo"),
        ((-2, -1), (-1,), "oij,aij->ao"),
        ((-1,), (-3, -1), "opi,ai->oap"),
        ((-2, -4), (-2, -4), "opij,jaib->paob"),
    ],
)
def test_a_matrix_on_axes_is_the_einsum(axes_in: tuple[int, ...], axes_out: tuple[int, ...], equation: str) -> None:
    lengths = {"i": 3, "j": 4, "o": 5, "p": 2, "a": 6, "b": 7}
    operands, result = equation.split("->")
    weight_letters, x_letters = operands.split(",")
    weight = random(*(lengths[letter] for letter in weight_letters))
    x = random(*(lengths[letter] for letter in x_letters))
    matrix = weight.flatten(0, 1) if "p" in weight_letters else weight
    matrix = matrix.flatten(1)
    form, output = LinearForm(axes_in, axes_out), random(*(lengths[letter] for letter in result))
    expected = torch.einsum(equation, weight, x)
    assert torch.allclose(applied(form, matrix, x, output), expected)
    rows = rows_of(form, x)
    assert rows.shape == (x.numel() // matrix.shape[1], matrix.shape[1])
    flat_rows = (rows @ matrix.T).flatten().sort().values
    assert torch.allclose(flat_rows, expected.flatten().sort().values)
    assert not torch.allclose(applied(form, matrix.flip(1), x, output), expected)


def test_component_and_channel_in_both_orders() -> None:
    # (rows, component, channel): W acts on 3 x 4 numbers at once, not on each component by itself.
    weight, x = random(3, 2, 3, 4), random(5, 3, 4)
    expected = torch.einsum("voic,nic->nvo", weight, x)
    form = LinearForm((-2, -1), (-2, -1))
    assert torch.allclose(applied(form, weight.reshape(6, 12), x, expected), expected)
    swapped = weight.permute(1, 0, 3, 2).reshape(6, 12)
    assert torch.allclose(applied(LinearForm((-1, -2), (-1, -2)), swapped, x, expected), expected)
    assert not torch.allclose(applied(LinearForm((-1, -2), (-1, -2)), weight.reshape(6, 12), x, expected), expected)


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"dimension 3, got shape \(2, 4\)"):
        applied(LinearForm(), random(2, 3), random(2, 4), random(2, 2))
    with pytest.raises(ShapeError, match=r"dimension 3, got shape \(2, 4\)"):
        applied(LinearForm((-2,), (-2,)), random(2, 3), random(2, 4), random(2, 4))
    assert applied(LinearForm((-2,), (-2,)), random(2, 3), random(3, 4), random(2, 4)).shape == (2, 4)
    # An output of dimension 1 would otherwise be broadcast.
    for axis in (-1, -2):
        with pytest.raises(ShapeError, match=rf"dimension 2 on the axes \[{axis}\], got shape \(1, 1\)"):
            applied(LinearForm((axis,), (axis,)), random(2, 3), random(3, 3), random(1, 1))


# Convolutions


def settings(
    kernel: tuple[int, ...],
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    mode: str = "zeros",
    frame: Any = None,
) -> Convolution:
    count = len(kernel)
    frame = tuple(tuple(int(i == j) for j in range(count)) for i in range(count)) if frame is None else frame
    return Convolution(kernel, (stride,) * count, (padding,) * count, (dilation,) * count, mode, frame)


def reference(moves: Convolution, weight: Tensor, x: Tensor) -> Tensor:
    """torch's own modules, which pad as the settings say."""
    kind = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[len(moves.kernel)]
    module = kind(
        weight.shape[1],
        weight.shape[0],
        moves.kernel,
        moves.stride,
        moves.padding,
        moves.dilation,
        bias=False,
        padding_mode=moves.mode,
        dtype=torch.float64,
    )
    with torch.no_grad():
        module.weight.copy_(weight)
        return module(x)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "mode", "batched"),
    [
        ((3,), 1, 0, 1, "zeros", True),
        ((3,), 1, 0, 1, "zeros", False),
        ((4,), 3, 2, 2, "circular", True),
        ((4,), 2, 1, 1, "replicate", True),
        ((3, 3), 1, 1, 1, "zeros", True),
        ((3, 3), 1, 2, 2, "circular", False),
        ((3, 3), 1, 1, 1, "reflect", True),
        ((2, 3), 3, 2, 2, "reflect", True),
        ((2, 3), 2, 1, 1, "zeros", True),
        ((2, 3), 1, 1, 1, "replicate", False),
        ((3, 1, 2), 2, 1, 1, "circular", True),
        ((3, 1, 2), 1, 2, 2, "zeros", False),
        ((3, 1, 2), 1, 1, 1, "replicate", True),
    ],
)
def test_a_kernel_is_torchs_convolution_and_its_rows_are_the_patches(
    kernel: tuple[int, ...], stride: int, padding: int, dilation: int, mode: str, batched: bool
) -> None:
    moves = settings(kernel, stride, padding, dilation, mode)
    form = ConvolutionForm(moves)
    x = random(*((2,) if batched else ()), 3, *(7 + axis for axis in range(len(kernel))))
    weight = random(4, 3, *kernel)
    expected = reference(moves, weight, x)
    assert torch.allclose(applied(form, weight, x, expected), expected)
    rows = rows_of(form, x)
    assert rows.shape == (expected.numel() // 4, 3 * math.prod(kernel))
    channel = 1 if batched else 0
    assert torch.allclose(rows @ weight.flatten(1).T, expected.movedim(channel, -1).reshape(-1, 4))
    if math.prod(kernel) > 1:
        flipped = weight.flip(tuple(range(2, weight.ndim)))
        assert not torch.allclose(rows @ flipped.flatten(1).T, expected.movedim(channel, -1).reshape(-1, 4))


def test_settings_that_differ_by_axis() -> None:
    moves = Convolution((3, 2), (1, 2), (2, 1), (2, 1), "circular", SQUARE)
    x, weight = random(2, 3, 8, 7), random(4, 3, 3, 2)
    expected = reference(moves, weight, x)
    form = ConvolutionForm(moves)
    assert torch.allclose(applied(form, weight, x, expected), expected)
    assert torch.allclose(rows_of(form, x) @ weight.flatten(1).T, expected.movedim(1, -1).reshape(-1, 4))


# Representations of W's two sides


def site(rho_out: Representation, rho_in: Representation, moves: Convolution | None, **more: Any) -> Site:
    shape = (rho_out.dimension, rho_in.dimension, *(moves.kernel if moves else ()))
    return Site("op", "x", "op", "", rho_in, rho_out, shape, convolution=moves, **more)


def relative_defect(place: Site, weight: Tensor, group: str) -> float:
    commutator = Commutator(*row_representations(place))
    return float(commutator(weight.flatten(1)).norm() / weight.norm())


def average(weight: Tensor, rho_out: Representation, rho_in: Representation) -> Tensor:
    """Mean over a finite group of rho_out(g) W(g^-1 u) rho_in(g)^-1, with torch's own turns."""
    group = rho_out.group
    total = torch.zeros_like(weight)
    for g in group.all_elements():
        left, right = rho_out.action(g).dense()[0], rho_in.action(torch.linalg.inv(g)).dense()[0]
        turned = weight
        if float(torch.linalg.det(g)) < 0:  # first y -> -y, then the rotation g (y -> -y)
            turned, g = turned.flip(-1), g @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        turns = round(math.atan2(float(g[1, 0]), float(g[0, 0])) / (math.pi / 2))
        turned = torch.rot90(turned, turns, (-2, -1))
        total += torch.einsum("op,pixy,ij->ojxy", left, turned, right)
    return total / len(group.all_elements())


@pytest.mark.parametrize(("name", "size"), list(product(["C4", "D4"], [2, 3, 5])))
def test_an_equivariant_kernel_has_no_defect_and_a_random_one_has(name: str, size: int) -> None:
    group = parse_group(name)
    rho_in, rho_out = regular(group, 1) + trivial(group, 1), regular(group, 2, "ir_mul")
    moves = settings((size, size), padding=1)
    place = site(rho_out, rho_in, moves)
    weight = random(*place.shape)
    mean = average(weight, rho_out, rho_in)
    assert float(mean.norm()) > 0.1
    assert relative_defect(place, mean, name) < 1e-12
    assert relative_defect(place, weight, name) > 0.1
    # What has no defect commutes with turning the image.
    x, form, g = random(1, rho_in.dimension, 6, 6), form_of(place), group.all_elements()[1]
    for kernel, equivariant in ((mean, True), (weight, False)):
        turn_in = torch.einsum("ij,bjxy->bixy", rho_in.action(g).dense()[0], torch.rot90(x, 1, (-2, -1)))
        left = applied(form, kernel, turn_in, x)
        right = torch.einsum(
            "ij,bjxy->bixy", rho_out.action(g).dense()[0], torch.rot90(applied(form, kernel, x, x), 1, (-2, -1))
        )
        assert torch.allclose(left, right) == equivariant


def test_the_frame_says_which_way_the_grid_turns() -> None:
    group = parse_group("C4")
    rho = regular(group, 1)
    mean = average(random(4, 4, 3, 3), rho, rho)
    right, wrong = (site(rho, rho, settings((3, 3), frame=frame)) for frame in (SQUARE, ((0, 1), (1, 0))))
    assert relative_defect(right, mean, "C4") < 1e-12
    assert relative_defect(wrong, mean, "C4") > 0.1


def test_a_kernel_between_scalars_under_rotations_of_the_plane() -> None:
    group = parse_group("SO2")
    place = site(trivial(group, 1), trivial(group, 1), settings((5, 5)))
    rho_out, rho_in = row_representations(place)
    assert (rho_out.dimension, rho_in.dimension) == (1, 25)
    at = torch.arange(-2.0, 3.0, dtype=torch.float64)
    x, y = torch.meshgrid(at, at, indexing="ij")
    weight = torch.where(x.square() + y.square() <= 1, 1.0, 0.0).double()
    derived = Commutator(rho_out, rho_in)(weight.reshape(1, -1))
    # W drho(A) f = -int W (A u) . grad f; for linear f it vanishes if W is even, for a shifted W it does not.
    plane = (2 * x - y).flatten()
    assert float((derived @ plane).abs().max()) <= 1e-12
    shifted = Commutator(rho_out, rho_in)(weight.roll(1, 0).reshape(1, -1))
    assert float((shifted @ plane).abs().max()) > 0.1


def test_inversion_and_kernels_in_space() -> None:
    group = parse_group("O3")
    scalar, vector = trivial(group, 1), irreps(group, "1x1o")
    place = site(vector, scalar, settings((3, 3, 3)))
    at = torch.arange(-1.0, 2.0, dtype=torch.float64)
    gradient = torch.stack(torch.meshgrid(at, at, at, indexing="ij")).unsqueeze(1)  # W(u) = u: odd
    inverted = Commutator(*row_representations(place))(gradient.flatten(1))[-1]
    assert float(inverted.abs().max()) <= 1e-12
    even = Commutator(*row_representations(place))(gradient.abs().flatten(1))[-1]
    assert float(even.abs().max()) > 0.1


def test_rows_of_a_matrix_keep_their_representations() -> None:
    group = parse_group("O3")
    rho_in, rho_out = irreps(group, "2x1o"), irreps(group, "1x0e+1x1o")
    assert row_representations(site(rho_out, rho_in, None)) == (rho_out, rho_in)
    moves = settings((3, 3, 3))
    assert row_representations(site(rho_out, rho_in, moves)) == (
        rho_out,
        on_grid(rho_in, moves.kernel, moves.frame),
    )


def test_the_form_of_a_site() -> None:
    rho = trivial(parse_group("C4"), 2)
    assert form_of(site(rho, rho, None)) == LinearForm((-1,), (-1,))
    assert form_of(site(rho, rho, None, axes_in=(-2,), axes_out=(-3,))) == LinearForm((-2,), (-3,))
    moves = settings((3, 3))
    assert form_of(site(rho, rho, moves)) == ConvolutionForm(moves)


LOW_RANK: dict[str, tuple[Form, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "last axis": (LinearForm(), (2, 6, 5), (2, 5), (4, 2), (2, 6, 4)),
    "columns": (LinearForm((-3, -2), (-3, -2)), (2, 4, 3, 7), (2, 12), (6, 2), (2, 2, 3, 7)),
    "moved": (LinearForm((-1, -3), (-1,)), (4, 7, 3), (2, 12), (6, 2), (7, 6)),
    "convolution": (
        ConvolutionForm(settings((3, 3), 1, 1, 1, "circular")),
        (2, 5, 8, 8),
        (2, 5, 3, 3),
        (4, 2),
        (2, 4, 8, 8),
    ),
}


@pytest.mark.parametrize("name", LOW_RANK)
def test_two_factors_are_their_product(name: str) -> None:
    form, shape_x, shape_a, shape_b, shape_out = LOW_RANK[name]
    x, a, b, output = random(*shape_x), random(*shape_a), random(*shape_b), random(*shape_out)
    dense = (b @ a.flatten(1)).reshape(shape_b[0], *shape_a[1:])
    expected = form.add(output, (dense,), x)
    assert expected.shape == output.shape
    assert torch.allclose(form.add(output, (a, b), x), expected)
    assert not torch.allclose(form.add(output, (a, b), x), output, atol=1e-2)
    assert torch.allclose(expected - output, applied(form, dense, x, output))


@pytest.mark.parametrize("name", LOW_RANK)
def test_some_rows_are_among_all_rows(name: str) -> None:
    form, shape_x, *_ = LOW_RANK[name]
    x = random(*shape_x)
    every, some = rows_of(form, x), some_rows(form, x, 5, 0.3)
    assert some.shape == (5, every.shape[1])
    assert all((every == row).all(1).any() for row in some)
    assert torch.equal(some_rows(form, x, len(every), 0.3), every)


def test_long_sequences_of_rows_reach_all_of_them_alike() -> None:
    assert some_rows(LinearForm(), torch.zeros(2, 0, 4), 8, 0.3).shape == (0, 4)
    x, counts = torch.arange(40.0)[:, None], torch.zeros(40)
    for step in range(200):
        counts[some_rows(LinearForm(), x, 8, step * 0.41421356 % 1).long().flatten()] += 1
    assert counts.min() > 0.7 * counts.max()


def test_blocks_are_chosen_by_degree() -> None:
    group = parse_group("O3")
    rho_in, rho_out = irreps(group, "2x0e+1o"), irreps(group, "0e+1o+2e")
    mask = block_mask(replace(site(rho_out, rho_in, None), blocks=((0, 1), (1, 2))))
    assert mask is not None
    expected = torch.zeros(9, 5, dtype=mask.dtype)
    expected[1:4, :2] = 1
    expected[4:, 2:] = 1
    assert torch.equal(mask, expected)
    with pytest.raises(PlanError, match=r"from l = 2 to l = 0: its input has l = 0, 1, its output l = 0, 1, 2"):
        block_mask(replace(site(rho_out, rho_in, None), blocks=((2, 0),)))
    assert block_mask(site(rho_out, rho_in, None)) is None


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        (LinearForm((-2,), (-1,)), ((4, 5, 3), (4, 3, 2), (2, 5))),
        (LinearForm((-3, -2), (-2, -3)), ((5, 2, 3, 4), (5, 3, 2, 4), (6, 6))),
        (
            ConvolutionForm(Convolution((3, 3), (2, 1), (1, 1), (1, 1), "zeros", SQUARE)),
            ((2, 3, 6, 5), None, (4, 3, 3, 3)),
        ),
    ],
)
@pytest.mark.parametrize("count", [7, 1000])
def test_rows_of_a_result_are_those_of_the_features(form: Form, shapes: Any, count: int) -> None:
    given, returned, weight = shapes
    x, w = random(*given), random(*weight)
    result = applied(form, w, x, random(*returned) if returned else x)
    rows = some_rows_out(form, result, count, 0.3)
    torch.testing.assert_close(rows, some_rows(form, x, count, 0.3) @ w.flatten(1).T)
    assert len(rows) == min(count, rows_of(form, x).shape[0])
