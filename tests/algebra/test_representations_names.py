"""Names of representations that are given by matrices, in any basis; what has no name gets none."""

from __future__ import annotations

import pytest
import torch

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations import axes, irreps, matrices, regular, trivial
from surgeon.algebra.representations.build import representation_from
from surgeon.algebra.representations.core import Representation


def in_another_basis(rho: Representation, seed: int = 0) -> Representation:
    """Two copies of what is equivalent to a representation."""
    group, generator = rho.group, torch.Generator().manual_seed(seed)
    basis = torch.randn(rho.dimension, rho.dimension, generator=generator, dtype=torch.float64)
    parts = {"algebra": rho.derivative(group.feature_algebra), "elements": rho.action(group.feature_elements)}
    images = {name: (basis @ part.dense() @ torch.linalg.inv(basis)).tolist() for name, part in parts.items()}
    return matrices(group, images, 2)


def spin(twice: int) -> torch.Tensor:
    """Generators of SU(2) on real pairs of spin j, from those of angular momentum; shape (3, 2 (2 j + 1), ...)."""
    m = twice / 2 - torch.arange(twice + 1, dtype=torch.float64)
    up = torch.diag(((twice / 2 - m[1:]) * (twice / 2 + m[1:] + 1)).sqrt(), 1).to(torch.complex128)
    algebra = -0.5j * torch.stack([up + up.mT, -1j * (up - up.mT), 2 * torch.diag(m)])
    one, imaginary = torch.eye(2).double(), torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return torch.stack([torch.kron(a.real, one) + torch.kron(a.imag, imaginary) for a in algebra])


def by(name: str, algebra: torch.Tensor) -> Representation:
    """A representation of a connected group by the images of its generators."""
    return matrices(parse_group(name), {"algebra": algebra.tolist(), "elements": []})


def spinors(*signs: int) -> Representation:
    """Weyl spinors of either chirality: boosts are rotations times +-i."""
    turns = spin(1)
    imaginary = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)] * 2)
    parts = [torch.cat([turns, sign * turns @ imaginary]) for sign in signs]
    return by("SO13", torch.stack([torch.block_diag(*each) for each in zip(*parts, strict=True)]))


def band(largest: int) -> Representation:
    """Functions on the circle of frequencies 0, 1, ... ."""
    pairs = [m * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64) for m in range(1, largest + 1)]
    return by("SO2", torch.block_diag(torch.zeros(1, 1, dtype=torch.float64), *pairs)[None])


def forms(name: str, degree: int) -> Representation:
    """Antisymmetric tensors, as the part of all tensors on which a projection is 1."""
    group, names = parse_group(name), "v w u"[: 2 * degree - 1]
    rho = axes(group, names, {})
    size = group.vector_dimension
    all_ = torch.eye(size**degree, dtype=torch.float64).reshape(-1, *[size] * degree)
    other = all_.transpose(-1, -2)
    cyclic = all_ if degree == 2 else all_ + all_.movedim(1, 3) + all_.movedim(3, 1)
    cyclic = cyclic if degree == 2 else cyclic - cyclic.transpose(-1, -2)
    skew = (all_ - other if degree == 2 else cyclic).flatten(1)
    basis = torch.linalg.svd(skew).Vh[: int(torch.linalg.matrix_rank(skew))]
    parts = {"algebra": rho.derivative(group.feature_algebra), "elements": rho.action(group.feature_elements)}
    return matrices(group, {key: (basis @ part.dense() @ basis.mT).tolist() for key, part in parts.items()})


@pytest.mark.parametrize(
    ("rho", "name"),
    [
        (irreps(parse_group("O3"), "1x2e"), "2 x 2e in another basis"),
        (irreps(parse_group("E3"), "2x0e+1x0o+2x1e+1x3o"), "2 x (2x0e+0o+2x1e+3o) in another basis"),
        (axes(parse_group("SO13"), "v", {}), "2 x vector in another basis"),
        (forms("O13", 2), "2 x bivector"),
        (forms("O13", 3), "2 x trivector"),
        (regular(parse_group("C3"), 1), "2 x frequencies 0, 1"),
        (regular(parse_group("C4"), 1), "2 x frequencies 0, 1, 2"),
        (regular(parse_group("D3"), 1), "2 x frequencies 0, 0 odd, 2x1"),
        (band(2), "2 x frequencies 0, 1, 2"),
        (
            trivial(parse_group("S4"), 2) + matrices(parse_group("S4"), {"algebra": [], "elements": [[[-1.0]]] * 2}, 2),
            "2 x 4-dimensional",
        ),
        (axes(parse_group("D5"), "v", {}), "2 x frequency 1"),
        (axes(parse_group("SU2"), "v", {}), "2 x spin 1/2"),
        (by("SU2", spin(3)), "2 x spin 3/2"),
        (by("SO3", spin(1)), "2 x spin 1/2"),
        (by("SU2", spin(4)), "2 x 10-dimensional"),
        (spinors(1), "2 x Weyl spinor"),
        (spinors(1, -1), "2 x Dirac spinor"),
    ],
    ids=str,
)
def test_names_do_not_depend_on_the_basis(rho: Representation, name: str) -> None:
    assert str(in_another_basis(rho)) == f"{name} (mul_ir)"


def test_names_that_take_no_other_basis() -> None:
    group = parse_group("O13")
    data = {"algebra": [[[0.0]]] * 6, "elements": [[[-1.0]], [[1.0]], [[-1.0]]]}
    assert str(matrices(group, data, 3)) == "3 x scalar odd under parity and under parity and time reversal (mul_ir)"
    ring = {"algebra": [], "elements": [torch.eye(4).roll(1, 0).tolist()]}
    assert str(matrices(parse_group("C4"), ring)) == "1 x permutation of 4 points (mul_ir)"
    adjoint = {"algebra": parse_group("SO3").algebra.tolist(), "elements": []}
    assert str(matrices(parse_group("SU2"), adjoint)) == "1 x adjoint (mul_ir)"


def test_what_a_plan_says_of_names_is_not_read() -> None:
    rho = in_another_basis(irreps(parse_group("SO3"), "1x2e"))
    told = {**rho.named_data(), "called": "something else"}
    assert representation_from(rho.group, told) == rho
    of_code = representation_from("mine:group", told)
    assert of_code == representation_from("mine:group", rho.to_data())
    assert of_code.named_data() == told  # its code is not imported for that
    assert str(of_code) == "2 x something else (mul_ir)"
