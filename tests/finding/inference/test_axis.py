"""The representation along one axis: labels, layouts, bases and blocks, and what is none."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, irreps, matrices, regular, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.axis import axis_representations
from surgeon.finding.inference.probe import TensorProbe
from tests.finding.inference.probes import elements_of, probe_as, probe_of, random

ROWS = 20


def first(probe: TensorProbe, axis: int = -1) -> Representation | None:
    return next(axis_representations(probe, axis), None)


def found_for(rho: Representation, rows: int = ROWS) -> Representation | None:
    return first(probe_as(rho, rows, rho.dimension))


def same(left: Representation | None, right: Representation) -> bool:
    """Tell whether two representations are the same matrices, not only equivalent."""
    elements = torch.stack(elements_of(right.group.name).all())
    return (
        left is not None
        and left.dimension == right.dimension
        and torch.allclose(left.action(elements).dense(), right.action(elements).dense(), atol=1e-6)
    )


def in_another_basis(rho: Representation) -> Representation:
    """Conjugate the images of the generators by a random matrix."""
    basis = torch.eye(rho.dimension, dtype=torch.float64) + 0.3 * random(rho.dimension, rho.dimension)
    group, inverse = rho.group, torch.linalg.inv(basis)
    images = {
        "algebra": (basis @ rho.derivative(group.feature_algebra).dense() @ inverse).tolist(),
        "elements": (basis @ rho.action(group.elements).dense() @ inverse).tolist(),
    }
    return matrices(group, images)


# Irreps


@pytest.mark.parametrize("group", ["SO3", "O3", "E3"])
@pytest.mark.parametrize("text", ["4x0e", "1x1o", "2x0e+3x1o+1x2e", "1x2e+2x0e+1x3o", "2x0e+1x1o+1x0e"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_degrees_and_layouts_of_irreps(group: str, text: str, layout: str) -> None:
    rho = irreps(parse_group(group), text, layout)
    found = found_for(rho)
    assert same(found, rho)
    assert found is not None
    assert "matrices" not in str(found.to_data())


def test_the_other_layout_is_another_representation() -> None:
    group = parse_group("SO3")
    found = found_for(irreps(group, "3x1o", "ir_mul"))
    assert same(found, irreps(group, "3x1o", "ir_mul"))
    assert not same(found, irreps(group, "3x1o"))


@pytest.mark.parametrize("text", ["2x0o", "2x0e+1x0o+1x0e", "1x1e+1x1o", "2x1o+2x1e+1x2o", "1x2e+1x2o"])
def test_parities_are_read_off_the_inversion(text: str) -> None:
    group = parse_group("O3")
    rho = irreps(group, text)
    found = found_for(rho)
    assert same(found, rho)
    assert not same(found, irreps(group, text.replace("o", "e")))


def test_layouts_may_change_along_the_axis() -> None:
    group = parse_group("O3")
    rho = irreps(group, "2x1o", "mul_ir") + irreps(group, "3x1o", "ir_mul") + irreps(group, "1x0e")
    assert same(found_for(rho), rho)


@pytest.mark.parametrize(("group", "text"), [("SO3", "1x1o"), ("O3", "1x1o"), ("O3", "1x2e")])
def test_an_irrep_in_another_basis_is_regressed(group: str, text: str) -> None:
    rho = in_another_basis(irreps(parse_group(group), text))
    found = found_for(rho)
    assert same(found, rho)
    assert not same(found, irreps(parse_group(group), text))


def test_mixed_degrees_have_no_label() -> None:
    assert found_for(in_another_basis(irreps(parse_group("SO3"), "1x1o+1x2e"))) is None


@pytest.mark.parametrize("name", ["SO3", "SO13"])
def test_coordinates_that_are_always_0_have_no_label(name: str) -> None:
    group, elements = parse_group(name), elements_of(name)
    rho = trivial(group, 1) + axes(group, "c v", {"c": 2})
    base = random(ROWS, rho.dimension)
    assert same(first(probe_of(elements, base, TensorType(rho).act)), rho)
    base[:, -group.dimension :] = 0
    assert first(probe_of(elements, base, TensorType(rho).act)) is None


# The plane


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_frequencies_of_the_plane(frequency: int) -> None:
    group = parse_group("SO2")
    turn = [[[0.0, -float(frequency)], [float(frequency), 0.0]]]
    rho = trivial(group, 2) + matrices(group, {"algebra": turn, "elements": []}, 3)
    assert same(found_for(rho), rho)
    assert not same(found_for(rho), trivial(group, 2) + axes(group, "c v", {"c": 3})) or frequency == 1


def test_scalars_of_the_plane_change_sign_under_the_reflection_or_do_not() -> None:
    group = parse_group("O2")
    sign = matrices(group, {"algebra": [[[0.0]]], "elements": [[[-1.0]]]}, 2)
    rho = trivial(group, 1) + sign + axes(group, "v c", {"c": 2})
    assert same(found_for(rho), rho)
    assert not same(found_for(rho), trivial(group, 3) + axes(group, "v c", {"c": 2}))


# Groups without a Casimir of their own


def test_vectors_of_the_lorentz_group() -> None:
    group = parse_group("SO13")
    rho = trivial(group, 3) + axes(group, "c v", {"c": 2})
    assert same(found_for(rho), rho)
    assert found_for(in_another_basis(axes(group, "c v", {"c": 2}))) is None  # no block of one size


# Finite groups


def reflected(group: Group) -> Representation:
    """The sign that is -1 for what changes orientation."""
    signs = [[[float(g.det())]] for g in group.elements]
    return matrices(group, {"algebra": [], "elements": signs})


FINITE: dict[str, Callable[[], Representation]] = {
    "C3 vectors": lambda: axes(parse_group("C3"), "c v", {"c": 3}),
    "C3 regular": lambda: regular(parse_group("C3"), 2, "ir_mul"),
    "D3 vectors, component first": lambda: axes(parse_group("D3"), "v c", {"c": 3}),
    "D3 signs": lambda: reflected(parse_group("D3")),
    "D3 regular": lambda: regular(parse_group("D3"), 2),
    "D6 vectors": lambda: axes(parse_group("D6"), "c v", {"c": 2}),
    "D6 regular": lambda: regular(parse_group("D6"), 1),
    "OCTA vectors": lambda: axes(parse_group("OCTA"), "c v", {"c": 2}),
    "OCTAH vectors": lambda: axes(parse_group("OCTAH"), "v c", {"c": 2}),
    "OCTAH signs": lambda: reflected(parse_group("OCTAH")),
    "D3 scalars and vectors": lambda: trivial(parse_group("D3"), 2) + axes(parse_group("D3"), "c v", {"c": 2}),
    "D6 vectors, signs, scalars": lambda: reduce(
        add, [axes(g := parse_group("D6"), "v c", {"c": 2}), reflected(g), trivial(g, 1)]
    ),
    "OCTAH scalars and vectors": lambda: trivial(parse_group("OCTAH"), 1) + axes(parse_group("OCTAH"), "v c", {"c": 3}),
    "C3 in another basis": lambda: in_another_basis(axes(parse_group("C3"), "v", {})),
    "D3 regular in another basis": lambda: in_another_basis(regular(parse_group("D3"), 1)),
    "C3 two kinds of blocks": lambda: (
        axes(g := parse_group("C3"), "c v", {"c": 3}) + in_another_basis(axes(g, "v", {}))
    ),
}


@pytest.mark.parametrize("name", FINITE)
def test_blocks_of_finite_groups(name: str) -> None:
    rho = FINITE[name]()
    found = found_for(rho)
    assert same(found, rho)
    assert not same(found, trivial(rho.group, rho.dimension))


def test_names_are_used_where_there_are_some() -> None:
    group = parse_group("D3")
    assert found_for(regular(group, 2, "ir_mul")) == regular(group, 2, "ir_mul")
    assert found_for(trivial(group, 4)) == trivial(group, 4)
    assert str(found_for(trivial(group, 1) + regular(group, 2))) == "1 x trivial + 2 x regular (mul_ir)"


@pytest.mark.parametrize("name", ["C3", "D3", "D6", "OCTA"])
def test_what_is_moved_by_no_linear_map_has_none(name: str) -> None:
    elements = elements_of(name)
    size = elements.group.dimension
    norms = random(ROWS, size)
    assert first(probe_of(elements, norms, lambda g, x: x @ g.T)) is not None
    for bent in (lambda g, x: (x @ g.T) ** 3, lambda g, x: (x @ g.T).cumsum(0), lambda g, x: torch.randn_like(x)):
        assert first(probe_of(elements, norms, bent)) is None


def test_blocks_in_no_layout_have_none() -> None:
    rho = axes(parse_group("C3"), "c v", {"c": 5})
    probe, order = probe_as(rho, ROWS, 10), torch.tensor([0, 3, 8, 1, 9, 2, 5, 4, 7, 6])
    assert same(first(probe), rho)
    assert first(TensorProbe(probe.elements, tuple(value[:, order] for value in probe.values))) is None


@pytest.mark.parametrize("name", ["C3", "D3", "OCTAH"])
def test_the_best_matrix_has_to_fit(name: str) -> None:
    group, elements = parse_group(name), elements_of(name)
    base = random(ROWS, group.dimension)
    beside = torch.linalg.qr(torch.cat([base, random(ROWS, 1)], dim=1)).Q[:, -1:]  # no combination of the coordinates
    assert first(probe_of(elements, base, lambda g, x: x @ g.T)) is not None
    assert first(probe_of(elements, base, lambda g, x: x @ g.T + 0.01 * beside)) is None


def test_few_rows_are_fitted_by_anything_and_the_relations_tell() -> None:
    elements = elements_of("D3")
    base = random(3, 3)
    moved = {str(g.tolist()): random(3, 3) for g in elements.all()}
    assert first(probe_of(elements, base, lambda g, x: moved[str(g.tolist())])) is None


def test_rows_that_leave_a_matrix_open_show_none() -> None:
    rho = axes(parse_group("D3"), "v", {}) + reflected(parse_group("D3"))
    assert found_for(rho) is not None
    assert found_for(rho, rows=1) is None
    flat = random(ROWS, 1) * random(1, 3)
    assert first(probe_of(elements_of("D3"), flat, TensorType(rho).act)) is None
    bent = in_another_basis(irreps(parse_group("SO3"), "1x1o"))
    assert first(probe_of(elements_of("SO3"), flat, TensorType(bent).act)) is None


def test_a_middle_axis() -> None:
    rho = trivial(parse_group("D3"), 1) + axes(parse_group("D3"), "v", {})
    probe = probe_as(TensorType(rho, (-2,)), 5, 3, 4)
    assert same(first(probe, -2), rho)
    assert first(probe) is None


def moved_alike(probe_values: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(value, probe_values[0]) for value in probe_values)


def test_invariants_are_trivial_in_every_group() -> None:
    for name in ("C3", "D6", "OCTAH", "SO2", "O3", "SO13"):
        probe = probe_as(trivial(parse_group(name), 4), ROWS, 4)
        assert moved_alike(probe.values)
        found = first(probe)
        assert found is not None
        assert found.is_trivial


def test_invariants_with_noise_are_no_larger_blocks() -> None:
    """Two copies of a block of size 2 fit any values of one row; images that are diagonal up to noise are no block."""
    base = random(1, 4)
    noisy = probe_of(elements_of("D5"), base, lambda g, x: x * (1 + 3e-7 * random(1, 4).sign()))
    found = list(axis_representations(noisy, -1))
    assert found
    assert all(str(rho).startswith(("4 x 1-dimensional", "4 x trivial")) for rho in found)
    vectors = axes(parse_group("D5"), "c v", {"c": 2})
    assert any(same(rho, vectors) for rho in axis_representations(probe_as(vectors, 1, 4), -1))
