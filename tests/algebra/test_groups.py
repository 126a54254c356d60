"""Groups: their algebras, their components, random elements, and the errors of ill-defined ones."""

from __future__ import annotations

import math
import sys
import types
from itertools import combinations

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import GroupError, ShapeError

LIE_GROUPS = ("SO2", "O2", "SO3", "O3", "SE3", "E3", "SO13", "O13")
UNITARY = ("SU2", "SU3")
METRIC = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64))


def rng(seed: int = 0) -> torch.Generator:
    """Return a seeded source of randomness."""
    return torch.Generator().manual_seed(seed)


def bracket_defect(algebra: Tensor) -> float:
    """Largest distance of a bracket of two matrices from the span of all."""
    columns = algebra.flatten(1).T
    projector = columns @ torch.linalg.pinv(columns)
    brackets = [a @ b - b @ a for a, b in combinations(algebra, 2)] or [torch.zeros_like(algebra[0])]
    flat = torch.stack(brackets).flatten(1).T
    return float((flat - projector @ flat).abs().max())


@pytest.mark.parametrize("name", [*LIE_GROUPS, *UNITARY])
def test_algebra_is_closed_under_the_bracket(name: str) -> None:
    assert bracket_defect(parse_group(name).algebra) < 1e-12


def test_incomplete_algebra_is_not_closed() -> None:
    assert bracket_defect(parse_group("SO3").algebra[:2]) > 0.1


def test_rotations_obey_the_cyclic_commutation_relations() -> None:
    x, y, z = parse_group("SO3").algebra
    assert torch.equal(x @ y - y @ x, z)
    assert torch.equal(y @ z - z @ y, x)
    assert not torch.equal(y @ x - x @ y, z)


@pytest.mark.parametrize("name", ["SO2", "SO3"])
def test_positive_angle_turns_the_first_axis_towards_the_next(name: str) -> None:
    group = parse_group(name)
    quarter = torch.linalg.matrix_exp(group.algebra[-1] * math.pi / 2)
    first, second = torch.eye(group.dimension, dtype=torch.float64)[:2]
    torch.testing.assert_close(quarter @ first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*LIE_GROUPS, *UNITARY])
def test_linear_part_preserves_the_metric_in_every_component(name: str) -> None:
    group = parse_group(name)
    metric = METRIC if "13" in name else torch.eye(group.vector_dimension, dtype=torch.float64)
    for component in range(len(group.component_names)):
        linear = group.linear(group.sample(50, rng(), component))
        assert (linear.mT @ metric @ linear - metric).abs().max() < 1e-12


def test_boosts_do_not_preserve_the_euclidean_metric() -> None:
    g = parse_group("SO13").sample(50, rng())
    assert (g.mT @ g - torch.eye(4, dtype=torch.float64)).abs().max() > 0.1


def test_components_of_the_lorentz_group_differ_in_determinant_and_time_direction() -> None:
    group = parse_group("O13")
    signs = {"identity": (1, 1), "parity": (-1, 1), "time reversal": (-1, -1), "parity and time reversal": (1, -1)}
    assert set(group.component_names) == set(signs)
    for component, name in enumerate(group.component_names):
        g = group.sample(20, rng(component), component)
        assert set(torch.linalg.det(g).round().tolist()) == {signs[name][0]}
        assert set(g[:, 0, 0].sign().tolist()) == {signs[name][1]}


@pytest.mark.parametrize("name", ["O2", "O3", "E3"])
def test_second_component_is_improper(name: str) -> None:
    group = parse_group(name)
    for component, sign in enumerate((1, -1)):
        determinants = torch.linalg.det(group.linear(group.sample(20, rng(), component)))
        torch.testing.assert_close(determinants, torch.full_like(determinants, sign), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["SO2", "O2", "SO3", "O3", "SE3"])
def test_sampled_rotations_have_the_moments_of_the_haar_measure(name: str) -> None:
    group = parse_group(name)
    linear = group.linear(group.sample(20_000, rng(), len(group.component_names) - 1))
    size = group.vector_dimension
    assert linear.mean(dim=0).abs().max() < 0.03
    second = torch.einsum("nij,nkl->ijkl", linear, linear) / len(linear)
    # Diagonal entries of the second moment: E[g_ij^2] = 1/d. (Mixed ones differ between SO(2) and SO(3).)
    squares = torch.einsum("ijij->ij", second)
    assert (squares - 1 / size).abs().max() < 0.02


def test_user_defined_compact_group_is_sampled_close_to_the_haar_measure() -> None:
    group = group_from_generators("spin", su2_generators(), compact=True)
    g = group.sample(20_000, rng())
    assert g.mean(dim=0).abs().max() < 0.03
    assert (g.square().mean(dim=0) - 0.25).abs().max() < 0.02
    timid = group_from_generators("timid", su2_generators(), compact=False).sample(20_000, rng())
    assert timid.mean(dim=0).abs().max() > 0.3


def test_translations_are_normal_and_do_not_act_on_features() -> None:
    group = parse_group("E3")
    g = group.sample(20_000, rng())
    assert (g[:, :3, 3].std(dim=0) - 1).abs().max() < 0.05
    assert group.feature_algebra.shape == (3, 3, 3)
    assert torch.equal(group.feature_algebra, parse_group("O3").algebra)
    assert torch.equal(group.feature_elements, parse_group("O3").elements)


def test_linear_accepts_linear_parts_and_rejects_other_shapes() -> None:
    group = parse_group("SE3")
    g = group.sample(2, rng())
    assert torch.equal(group.linear(group.linear(g)), g[:, :3, :3])
    with pytest.raises(ShapeError, match=r"\(\.\.\., 4, 4\), got shape \(5, 5\)"):
        group.linear(torch.eye(5))


@pytest.mark.parametrize(("name", "order"), [("C1", 1), ("C2", 2), ("C7", 7), ("D1", 2), ("D2", 4), ("D6", 12)])
def test_finite_groups_are_closed_and_have_the_right_order(name: str, order: int) -> None:
    elements = parse_group(name).all_elements()
    assert len(elements) == order
    assert torch.equal(elements[0], torch.eye(2, dtype=torch.float64))
    assert closure_defect(elements) < 1e-12
    if order > 2:
        assert closure_defect(elements[:-1]) > 0.1
    assert torch.cdist(elements.flatten(1), elements.flatten(1)).fill_diagonal_(1.0).min() > 0.1 or order == 1


def closure_defect(elements: Tensor) -> float:
    """Largest distance of a product of two elements from all elements."""
    products = torch.einsum("aij,bjk->abik", elements, elements).flatten(0, 1)
    return float((products[:, None] - elements[None]).abs().amax(dim=(2, 3)).min(dim=1).values.max())


def test_dihedral_elements_are_the_rotations_then_the_reflections() -> None:
    r, s = parse_group("D3").elements
    expected = torch.stack([torch.eye(2, dtype=torch.float64), r, r @ r, s, r @ s, r @ r @ s])
    torch.testing.assert_close(parse_group("D3").all_elements(), expected, rtol=0, atol=1e-12)


def test_finite_groups_are_sampled_uniformly() -> None:
    group = parse_group("D4")
    g, elements = group.sample(8000, rng()), group.all_elements()
    index = (g[:, None] - elements[None]).abs().amax(dim=(2, 3)).argmin(dim=1)
    assert (torch.bincount(index, minlength=8) - 1000).abs().max() < 150


@pytest.mark.parametrize("name", ["C1", "C2", "C3", "D1", "D2", "D3", "D6", "OCTA", "OCTAH", "ICOSAH", "S4", "Z6"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_test_elements_of_a_finite_group_generate_all_of_it(name: str, seed: int) -> None:
    group = parse_group(name)
    named = group.test_elements(rng(seed), random=0)
    assert [element.component for element in named] == [element.label for element in named]
    generated = group_from_generators("generated", None, torch.stack([element.g for element in named]))
    assert len(generated.all_elements()) == len(group.all_elements())


def test_further_test_elements_of_a_finite_group_are_new_ones() -> None:
    group = parse_group("D3")
    for seed in range(10):
        found = group.test_elements(rng(seed), random=9)
        assert [element.component for element in found] == ["rotation", "reflection", *["other elements"] * 3]
        flat = torch.stack([torch.eye(2, dtype=torch.float64), *(element.g for element in found)]).flatten(1)
        assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 0.1
        for label, _, g in found[2:]:
            assert torch.equal(g, group.all_elements()[int(label.removeprefix("element "))])
    assert len(group.test_elements(rng(), random=1)) == 3


@pytest.mark.parametrize("name", LIE_GROUPS)
def test_the_test_elements_of_a_lie_group_are_of_every_component(name: str) -> None:
    group = parse_group(name)
    found = group.test_elements(rng(), random=2)
    steps = [g for label, _, g in found if label.startswith("generator")]
    torch.testing.assert_close(torch.stack(steps), torch.linalg.matrix_exp(group.algebra[: len(steps)]))
    assert len(steps) == len(group.feature_algebra)
    for index, component in enumerate(group.component_names):
        own = torch.stack([element.g for element in found[len(steps) :] if element.component == component])
        assert len(own) == 2
        expected = group.sample(1, rng(), index)
        assert torch.equal(torch.linalg.det(own).sign(), torch.linalg.det(expected).sign().expand(2))
        assert (own[0] - own[1]).norm() > 0.1
    assert len({element.label for element in found}) == len(found)


def test_a_group_of_scales_is_tested_by_its_one_scale() -> None:
    found = parse_group("SCALE3").test_elements(rng(), random=4)
    assert [(element.component, float(element.g)) for element in found] == [("identity", 1), ("shrunk by 3", 1 / 3)]


def test_same_seed_same_elements() -> None:
    group = parse_group("E3")
    assert torch.equal(group.sample(3, rng(5), 1), group.sample(3, rng(5), 1))
    assert not torch.equal(group.sample(3, rng(5), 1), group.sample(3, rng(6), 1))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("SO(1,3)", "SO13"),
        ("so3", "SO3"),
        ("E(3)", "E3"),
        (" s e [3] ", "SE3"),
        ("O_2", "O2"),
        ("c 12", "C12"),
        ("d4", "D4"),
        ("o(1, 3)", "O13"),
        ("SO(2)", "SO2"),
        ("Lorentz", "SO13"),
        ("U(1)", "SO2"),
        ("p4m", "D4"),
        ("su(3)", "SU3"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert parse_group(spelling).name == name


@pytest.mark.parametrize("name", ["SO4", "", "C", "Cn", "D-1", "SU4", "p6m", "SO(3)x"])
def test_unknown_names_list_the_choices(name: str) -> None:
    with pytest.raises(GroupError, match=r"choose one of SO2, O2, .*, C<n>, D<n>, .*, P4M, S<n>, Z<n>, SCALE<n>, or"):
        parse_group(name)


@pytest.mark.parametrize(("name", "why"), [("C0", "from 1 to"), ("D0", "from 1 to"), ("S7", "2 to 6, got S7: weights")])
def test_finite_groups_have_sizes(name: str, why: str) -> None:
    with pytest.raises(GroupError, match=why):
        parse_group(name)


@pytest.mark.parametrize(("name", "order"), [("ICOSA", 60), ("ICOSAH", 120), ("S5", 120), ("Z7", 7), ("S2", 2)])
def test_orders(name: str, order: int) -> None:
    assert len(parse_group(name).all_elements()) == order


def test_component_out_of_range_lists_the_components() -> None:
    with pytest.raises(GroupError, match=r"choose one of 0 \(identity\), 1 \(inversion\)"):
        parse_group("O3").sample(1, rng(), 2)
    with pytest.raises(GroupError, match="infinitely many"):
        parse_group("O3").all_elements()


def su2_generators() -> Tensor:
    """SU(2) on R^4 = quaternions: half the left multiplications by i, j, k."""
    i = [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]
    j = [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]]
    k = [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    return torch.tensor([i, j, k], dtype=torch.float64) / 2


def sl2_generators() -> Tensor:
    """SL(2, R) on the plane."""
    return torch.tensor([[[1, 0], [0, -1]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]], dtype=torch.float64)


def test_user_defined_lie_groups() -> None:
    su2 = group_from_generators("quaternions", su2_generators(), compact=True)
    g = su2.sample(10, rng())
    assert (g.mT @ g - torch.eye(4, dtype=torch.float64)).abs().max() < 1e-12
    sl2 = group_from_generators("SL2", sl2_generators().float(), -torch.ones(1, 1, 1) * torch.eye(2))
    assert sl2.component_names == ("identity", "element 1")
    determinants = torch.linalg.det(sl2.sample(10, rng(), 1))
    torch.testing.assert_close(determinants, torch.ones_like(determinants), rtol=0, atol=1e-12)


def test_algebra_that_is_not_closed_is_rejected() -> None:
    with pytest.raises(GroupError, match=r"bracket, but that of generators 0 and 1 leaves their span by [\d.e+-]+"):
        group_from_generators("half", parse_group("SO3").algebra[:2])
    with pytest.raises(GroupError, match="linearly independent generators of twice"):
        group_from_generators("twice", parse_group("SO2").algebra.repeat(2, 1, 1))
    with pytest.raises(GroupError, match="pass compact=False"):
        group_from_generators("SL2", sl2_generators(), compact=True)


def test_unusable_matrices_are_rejected() -> None:
    rotation = parse_group("SO2").algebra
    with pytest.raises(GroupError, match=r"shape \(n, k, k\).*got \(2, 3\)"):
        group_from_generators("flat", torch.ones(2, 3))
    with pytest.raises(GroupError, match="finite numbers in the algebra"):
        group_from_generators("nan", rotation * math.nan)
    with pytest.raises(GroupError, match="singular one at index 0"):
        group_from_generators("singular", rotation, torch.ones(1, 2, 2))
    with pytest.raises(GroupError, match="element 0 of shear to map the Lie algebra to itself"):
        group_from_generators("shear", rotation, torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]))
    with pytest.raises(GroupError, match="one defining representation"):
        group_from_generators("sizes", rotation, torch.eye(3)[None])
    with pytest.raises(GroupError, match="neither"):
        group_from_generators("nothing", None)
    with pytest.raises(GroupError, match="built in: rename it"):
        group_from_generators("so(2)", rotation)


def test_user_defined_finite_groups() -> None:
    swap, cycle = torch.eye(3)[[1, 0, 2]], torch.eye(3)[[1, 2, 0]]
    assert len(group_from_generators("three points", None, torch.stack([swap, cycle])).all_elements()) == 6
    with pytest.raises(GroupError, match="more than 10000"):
        group_from_generators("shears", None, torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]))
    with pytest.raises(GroupError, match="determinant 1 or -1"):
        group_from_generators("shrink", None, torch.tensor([[[0.5]]]))


def test_group_from_a_function_can_be_found_again_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_groups")
    members = {
        "pair": lambda: ([[[0, -1], [1, 0]]], [[[1, 0], [0, -1]]]),
        "own": lambda: group_from_generators("SL2", sl2_generators()),
        "builtin": lambda: parse_group("D3"),
        "wrong": lambda: 3,
        "ragged": lambda: ([[[0, 1], [2]]], None),
        "not_callable": 7,
    }
    for name, member in members.items():
        setattr(module, name, member)
    monkeypatch.setitem(sys.modules, "my_groups", module)
    pair: Group = parse_group("my_groups:pair")
    assert pair.name == "my_groups:pair"
    assert pair.component_names == ("identity", "element 1")
    assert parse_group("my_groups:own").name == "my_groups:own"
    assert parse_group("my_groups:builtin").name == "D3"
    for name in ("missing", "not_callable"):
        with pytest.raises(GroupError, match=f"my_groups:{name}' fails with"):
            parse_group(f"my_groups:{name}")
    with pytest.raises(GroupError, match=r"tuple \(algebra, elements\), got int"):
        parse_group("my_groups:wrong")
    with pytest.raises(GroupError, match="arrays of numbers"):
        parse_group("my_groups:ragged")
    with pytest.raises(GroupError, match="ModuleNotFoundError"):
        parse_group("no_such_module_here:f")


def test_the_rotations_of_a_cube_map_its_grid_to_itself() -> None:
    elements = parse_group("octa").all_elements()
    assert len(elements) == 24
    assert torch.equal(elements.abs(), elements.abs().round())
    assert torch.allclose(torch.linalg.det(elements), torch.ones(24, dtype=torch.float64))


def test_the_symmetries_of_a_cube_are_its_rotations_with_and_without_inversion() -> None:
    rotations, all_elements = (parse_group(name).all_elements() for name in ("octa", "octah"))
    assert len(all_elements) == 48
    assert torch.equal(all_elements[:24], rotations)
    assert torch.allclose(all_elements[24:], -rotations)
