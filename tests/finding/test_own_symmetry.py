"""A group is refused if a component of it is no symmetry of the model, however small the error is beside others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import NotASymmetryError
from surgeon.finding.own_symmetry import judged, unseen
from tests.nets import o3

pytestmark = pytest.mark.e3nn


class Potential(nn.Module):
    """An invariant of vectors, plus a small part of the triple product, which changes sign under the inversion."""

    def __init__(self, chiral: float = 0.0, single: bool = False) -> None:
        super().__init__()
        self.mix, self.chiral, self.single = o3.Linear("3x1o", "3x1o"), chiral, single

    def forward(self, x: Tensor) -> Tensor:
        if self.single and x.dtype != torch.float32:  # as a compiled kernel does
            raise RuntimeError("expected float32")
        h = self.mix(x).unflatten(-1, (3, 3))
        return h.square().sum((-2, -1)) + self.chiral * torch.linalg.det(h)


def find(model: nn.Module, group: str, dtype: torch.dtype = torch.float32) -> surgeon.Plan:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=dtype)

    def act(g: Tensor, x: Tensor) -> Tensor:
        return (x.unflatten(-1, (3, 3)) @ g.to(x).T).flatten(-2)

    return surgeon.find(model, group, x, act=act, act_output=lambda g, y: y)


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32 only"])
def test_a_potential_without_inversion_symmetry_is_refused_under_o3(single: bool) -> None:
    torch.manual_seed(0)
    with pytest.raises(NotASymmetryError, match=r"under 'inversion'.*choose SO3, under which they") as caught:
        find(Potential(2e-2, single), "O3")
    assert ("float32" if single else "float64") in str(caught.value)
    assert caught.value.plan.audit
    assert not caught.value.plan.sites
    for group, chiral in (("SO3", 2e-2), ("O3", 0.0)):
        plan = find(Potential(chiral, single), group)
        assert [site.name for site in plan.sites] == ["mix"]


def test_a_model_without_the_symmetry_is_refused_though_its_layers_have_it() -> None:
    class Broken(Potential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x[:, 0]

    with pytest.raises(NotASymmetryError, match="under 'identity'.*choose a smaller group"):
        find(Broken(), "O3")


FLAT = 1e-6
"""An error of rounding size in float32."""


@pytest.mark.parametrize(
    ("group", "errors", "words"),
    [
        ("O3", {"identity": FLAT, "inversion": 2e-3}, "choose SO3"),
        ("O3", {"identity": 1e-3, "inversion": 2e-3}, None),  # approximate under rotations, too
        ("O3", {"identity": FLAT, "inversion": 9e-5}, None),  # rounding
        ("O3", {"identity": 3e-2, "inversion": 3e-2}, "under 'identity'.*choose a smaller group"),
        ("O3", {"identity": 1e-2, "inversion": 3e-2}, "under 'inversion'"),
        ("SO3", {"identity": 1e-2}, None),
        ("O13", {"identity": 0, "parity": 0, "time reversal": 1e-3, "parity and time reversal": 0}, "choose SO13"),
        ("D3", {"rotation": FLAT, "reflection": 1e-3, "other elements": 1e-3}, "under 'reflection'.*choose C3"),
        ("D8", {"rotation": 1e-2, "reflection": 0, "other elements": 1e-2}, None),  # turned off the grid
        ("D3", {"rotation": 1e-1, "reflection": 0, "other elements": 1e-1}, "choose a smaller group"),
        ("OCTAH", {"quarter turn about x": 0, "quarter turn about z": 0, "inversion": 1e-3}, "choose OCTA,"),
        ("C4", {"rotation": 1e-2, "other elements": 1e-2}, None),
        ("C4", {"rotation": float("nan")}, "under 'rotation'"),
    ],
)
def test_reflections_are_judged_by_the_error_under_rotations(
    group: str, errors: Mapping[str, float], words: str | None
) -> None:
    complaint = judged(parse_group(group), errors, torch.float32)
    if words is None:
        assert complaint is None
    else:
        with pytest.raises(ValueError, match=words):
            raise ValueError(complaint.words if complaint else "")


def test_less_is_rounding_in_float64() -> None:
    errors = {"identity": 1e-15, "inversion": 1e-5}
    assert judged(parse_group("O3"), errors, torch.float32) is None
    assert judged(parse_group("O3"), errors, torch.float64) is not None
    assert judged(parse_group("O3"), {**errors, "identity": 2e-6}, torch.float64) is None


@pytest.mark.parametrize(
    ("group", "shape", "words"),
    [
        ("SO3", (1.0, 2.0, 3.0), "line, so that rotations about it"),
        ("O3", (1.0, 2.0, 3.0), "line, so that rotations about it"),
        ("E3", (1.0, 2.0, 3.0), "line, so that rotations about it"),
        ("O3", (1.0, 1.0, 0.0), "plane, so that the reflection through it"),
        ("SO3", (1.0, 1.0, 0.0), ""),
        ("O3", (1.0, 1.0, 1.0), ""),
        ("O2", (1.0, 2.0), "line, so that the reflection through it"),
    ],
)
def test_what_no_sample_shows_is_said(group: str, shape: tuple[float, ...], words: str) -> None:
    symmetry = Symmetry(parse_group(group), lambda g, x: x @ g[: len(shape), : len(shape)].T)
    x = torch.randn(9, len(shape), dtype=torch.float64) * torch.tensor(shape)
    if shape[:2] == (1.0, 2.0):  # a line; of motions, one that does not meet the origin
        x = x[:, :1] * torch.tensor(shape, dtype=torch.float64) + (torch.ones(len(shape)) if group == "E3" else 0)
    assert words in unseen(symmetry, (x,)) if words else not unseen(symmetry, (x,))


class Lorentz(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.mT).mT


@pytest.mark.parametrize(
    ("group", "change", "words"),
    [
        ("SO3", lambda g: g.T, "took g^-1, which is g^T, in place of g"),
        ("SO13", torch.linalg.inv, "took g^-1 in place of g"),
        ("SO13", lambda g: g.T, "took g^T in place of g"),
        ("SO13", lambda g: torch.linalg.inv(g).T, "took the transposed of g^-1 in place of g"),
    ],
)
def test_an_action_of_another_element_is_recognised(group: str, change: Callable[[Tensor], Tensor], words: str) -> None:
    chosen = parse_group(group)
    x = torch.randn(9, 2, chosen.dimension, dtype=torch.float64)
    with pytest.raises(NotASymmetryError) as caught:
        surgeon.find(
            Lorentz().double().eval(),
            chosen,
            x,
            act=lambda g, x: x @ g.T,
            act_output=lambda g, y: y @ change(g).T,
            adapters={},
        )
    assert words in str(caught.value)
