"""From values under several elements to a type: what holds, what must not, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, irreps, trivial
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference import hypotheses as hypotheses_module
from surgeon.finding.inference.axis import scalars
from surgeon.finding.inference.hypotheses import (
    TOLERANCE,
    frames,
    infer_type,
    residual_of,
    vector_types,
)
from surgeon.finding.inference.probe import TensorProbe
from tests.finding.inference.probes import elements_of, probe_as, probe_of, random

C3, C4, D3, D4, D6, OCTA, OCTAH, O2, SO3, O3, SO13 = (
    parse_group(name) for name in ("C3", "C4", "D3", "D4", "D6", "OCTA", "OCTAH", "O2", "SO3", "O3", "SO13")
)
EVERY = [C3, D3, D6, OCTA, OCTAH, O2, SO3, O3, SO13]
SQUARE = ((1, 0), (0, 1))


def vectors(group: object, *positions: int) -> TensorType:
    return TensorType(axes(group, " ".join("vwu"[: len(positions)]), {}), positions)


# What is found


@pytest.mark.parametrize("group", EVERY, ids=str)
def test_invariants_and_what_almost_is(group: object) -> None:
    probe = probe_as(TensorType(trivial(group, 1), ()), 4, 5)
    assert infer_type(probe).type == TensorType(trivial(group, 1), ())
    worse = probe_of(probe.elements, probe.base, lambda g, x: x + 10 * TOLERANCE * x.norm() * torch.randn_like(x))
    verdict = infer_type(worse)
    assert verdict.type is None
    assert "no structured representation fits (best relative residual " in verdict.reason
    assert TOLERANCE < verdict.residual < 1e-2


@pytest.mark.parametrize("group", EVERY, ids=str)
@pytest.mark.parametrize("position", [-1, -2])
def test_vector_indices(group: object, position: int) -> None:
    size = group.vector_dimension
    found = infer_type(probe_as(vectors(group, position), *((9, size) if position == -1 else (size, 9)))).type
    assert found == vectors(group, position)


@pytest.mark.parametrize("group", [D3, D6, OCTAH, SO3, O3], ids=str)
def test_tensors_of_rank_two_are_no_vectors(group: object) -> None:
    size, kind = group.vector_dimension, vectors(group, -2, -1)
    probe = probe_as(kind, 6, size, size)
    assert infer_type(probe).type == kind
    for axis in (-1, -2):
        assert residual_of(vectors(group, axis), probe) > 0.1


@pytest.mark.parametrize("group", [D3, D6, OCTAH, O2, O3], ids=str)
def test_one_sign_per_reflection(group: object) -> None:
    signs = [round(float(g.det())) for g in group.elements]
    kind = TensorType(scalars(group, 1, signs), ())
    probe = probe_as(kind, 7, 2)
    assert infer_type(probe).type == kind
    assert residual_of(TensorType(trivial(group, 1), ()), probe) == pytest.approx(2.0)
    kept = [1.0] * len(signs)
    assert infer_type(probe_as(TensorType(scalars(group, 1, kept), ()), 7, 2)).type.is_invariant


def test_a_sign_that_only_some_entries_have_is_no_invariant() -> None:
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = infer_type(probe_of(elements_of("D3"), random(7, 2), lambda g, x: x * signs if g.det() < 0 else x)).type
    assert found is not None
    assert found.axes == (-1,)
    assert not found.is_invariant
    assert torch.allclose(found.act(D3.elements[1], torch.ones(2).double()), signs)


def test_axial_vectors_are_told_from_polar_ones() -> None:
    axial, polar = TensorType(irreps(O3, "1x1e")), vectors(O3, -1)
    assert infer_type(probe_as(axial, 6, 3)).type == axial
    assert infer_type(probe_as(polar, 6, 3)).type == polar
    assert residual_of(polar, probe_as(axial, 6, 3)) > 1
    kinds = vector_types(SO3, torch.Size((2, 3)))
    assert [str(kind.rho) for kind in kinds] == ["axes v"]  # no inversion, no difference


def test_an_axis_of_irreps_beside_copies() -> None:
    kind = TensorType(irreps(O3, "2x0e+1x1o"), (-2,))
    probe = probe_as(kind, 4, 5, 6)
    assert infer_type(probe).type == kind
    assert residual_of(TensorType(irreps(O3, "2x0e+1x1e"), (-2,)), probe) > 1


# What has none


BENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "power": lambda g, x: (x @ g.T) ** 3,
    "shift": lambda g, x: x @ g.T + 1,
    "wrong way": lambda g, x: x @ g,
    "scaled": lambda g, x: (1 + 1e-4) * x @ g.T,
    "other rows": lambda g, x: (x @ g.T).flip(0),
    "noise": lambda g, x: torch.randn_like(x),
}


@pytest.mark.parametrize("group", [D3, D6, OCTA, SO3, O3], ids=str)
@pytest.mark.parametrize("name", BENT)
def test_what_does_not_transform_linearly_has_no_type(group: object, name: str) -> None:
    elements = elements_of(group.name)
    probe = probe_of(elements, random(17, group.dimension), BENT[name])
    verdict = infer_type(probe)
    assert verdict.type is None
    assert verdict.residual > TOLERANCE


def test_a_subgroup_is_not_the_group() -> None:
    """Under the rotations of D3 alone a quarter turn of vectors would do no harm."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    probe = probe_of(elements_of("D3"), random(9, 2), lambda g, x: x @ (g if g.det() > 0 else quarter).T)
    assert infer_type(probe).type is None


# How it is judged


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_every_element_judges_the_generators_too(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypotheses_module, "AT_ONCE", at_once)
    kind = vectors(D3, -1)
    elements = elements_of("D3")
    for spoiled in range(1, len(elements.all())):
        values = list(probe_of(elements, random(5, 2), kind.act).values)
        values[spoiled] = 1.01 * values[spoiled]
        assert residual_of(kind, TensorProbe(elements, tuple(values))) == pytest.approx(0.01 / 1.01)


def test_small_features_are_judged_by_themselves() -> None:
    group = parse_group("D3")
    kind = trivial(group, 1) + axes(group, "v", {})
    base = random(8, 3)
    base[:, 0] *= 1e7
    probe = probe_of(elements_of("D3"), base, TensorType(kind).act)
    assert residual_of(TensorType(kind), probe) < 1e-12
    assert residual_of(TensorType(trivial(group, 3)), probe) > 0.1
    assert infer_type(probe).type == TensorType(trivial(group, 1), ())  # as one tensor of rows nothing shows
    found = infer_type(probe, apart=(-1,)).type
    assert found is not None
    assert residual_of(found, probe) < TOLERANCE
    assert not found.is_invariant
    tiny = base.clone()
    tiny[:, 1:] *= 1e-12  # rounding of the large ones
    assert residual_of(TensorType(trivial(group, 3)), probe_of(elements_of("D3"), tiny, TensorType(kind).act)) < 1e-6


def test_values_that_are_not_finite_do_not_hold() -> None:
    kind, probe = vectors(D3, -1), probe_as(vectors(D3, -1), 5, 2)
    assert residual_of(kind, probe) < 1e-12
    values = [value.clone() for value in probe.values]
    values[-1][0, 0] = torch.nan
    spoiled = TensorProbe(probe.elements, tuple(values))
    assert residual_of(kind, spoiled) == float("inf")
    assert infer_type(spoiled).reason == "it holds numbers that are not finite"


def test_what_cannot_be_measured_says_why() -> None:
    elements = elements_of("C3")
    zero = infer_type(probe_of(elements, torch.zeros(3, 2).double(), lambda g, x: x @ g.T))
    assert (zero.type, zero.reason) == (None, "it is 0 on the sample batch, so that nothing can be measured")
    assert "holds no features" in infer_type(probe_of(elements, torch.arange(3), lambda g, x: x)).reason
    assert "holds no features" in infer_type(probe_of(elements, random(0, 2), lambda g, x: x)).reason
    grown = infer_type(probe_of(elements, random(3, 2), lambda g, x: torch.cat([x, x])))
    assert grown.reason == "its shape depends on the group element"


def test_features_that_are_0_in_all_runs_are_silent() -> None:
    kind = vectors(D3, -1)
    base = random(4, 5, 2)
    assert infer_type(probe_of(elements_of("D3"), base, kind.act)).silent == ()
    base[:, 3] = 0
    assert infer_type(probe_of(elements_of("D3"), base, kind.act)).silent == (-2,)
    base[2] = 0
    verdict = infer_type(probe_of(elements_of("D3"), base, kind.act))
    assert (verdict.type, verdict.silent) == (kind, (-3, -2))
    along = torch.tensor([1.0, 0.0], dtype=torch.float64) * random(4, 5, 1)  # 0 in the first run only
    assert infer_type(probe_of(elements_of("D3"), along, kind.act)).silent == ()
    bent = infer_type(probe_of(elements_of("D3"), base, lambda g, x: kind.act(g, x) ** 3))
    assert (bent.type, bent.silent) == (None, (-3, -2))


# Fields on a grid


@pytest.mark.parametrize(
    ("group", "count"), [(C4, 2), (D4, 4), (parse_group("C2"), 1), (OCTA, 24), (OCTAH, 24)], ids=str
)
def test_frames_that_differ_in_their_action(group: object, count: int) -> None:
    found = frames(group)
    assert found[0] == tuple(tuple(int(i == j) for j in range(len(found[0]))) for i in range(len(found[0])))
    actions = [torch.tensor(frame).double() @ group.elements @ torch.tensor(frame).double().T for frame in found]
    assert len(actions) == count
    assert all(not torch.allclose(a, b) for i, a in enumerate(actions) for b in actions[:i])


@pytest.mark.parametrize("group", [C4, D4, parse_group("D2")], ids=str)
def test_fields_of_scalars_and_of_vectors(group: object) -> None:
    scalars = TensorType(trivial(group, 1), (), (-2, -1), SQUARE)
    assert infer_type(probe_as(scalars, 2, 3, 5, 5)).type == scalars
    kind = TensorType(axes(group, "v", {}), (-3,), (-2, -1), SQUARE)
    probe = probe_as(kind, 4, 2, 3, 3)
    found = infer_type(probe).type
    assert found is not None
    assert (found.grid, found.axes) == ((-2, -1), (-3,))
    assert residual_of(found, probe) < 1e-9
    assert residual_of(scalars, probe) > 0.1


def test_a_group_that_maps_no_grid_has_no_fields() -> None:
    probe = probe_of(elements_of("C3"), random(2, 4, 4), lambda g, x: torch.rot90(x, 1, (-2, -1)))
    assert infer_type(probe).type is None
