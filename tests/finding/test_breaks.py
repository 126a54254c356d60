"""The first op that breaks the symmetry, in nets of a few lines and under small groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.finding.breaks import Breaks, find_breaks
from tests.finding.inference.probes import random

GROUPS = ["C3", "D3", "D6", "OCTA", "OCTAH", "O2", "SO3", "O3"]


class Net(nn.Module):
    """Vectors (n, d) to their scaled sums (n, d); ``bug`` spoils what ``second`` makes of them."""

    def __init__(self, bug: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.bug = nn.Identity(), Second(bug), bug

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(2 * x)) + x


class Second(nn.Module):
    def __init__(self, bug: Any) -> None:
        super().__init__()
        self.bug = bug

    def forward(self, x: Tensor) -> Tensor:
        y = x * x.square().sum(-1, keepdim=True)
        return y if self.bug is None else self.bug(y)


def search(model: nn.Module, name: str, act_output: Any = None, act: Any = None) -> Breaks:
    group = parse_group(name)
    symmetry = Symmetry(group, act or (lambda g, x: x @ g.T), act_output or (lambda g, y: y @ g.T))
    return find_breaks(model.double().eval(), symmetry, random(6, group.vector_dimension))


@pytest.mark.parametrize("name", GROUPS)
def test_without_a_bug_there_is_no_break(name: str) -> None:
    found = search(Net(), name)
    assert not found.broken
    assert found.first is None
    assert not found.judged


BUGS: dict[str, Any] = {
    "relu": torch.relu,
    "power": lambda y: y**2,
    "bias": lambda y: y + 1.0,
    "fixed": lambda y: y * torch.arange(len(y.T)),
}


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("C3", "relu"),
        ("C3", "fixed"),
        ("D3", "relu"),
        ("D3", "power"),
        ("D6", "bias"),
        ("OCTA", "relu"),
        ("SO3", "bias"),
    ],
)
def test_the_op_that_breaks_it_is_named_with_its_module(name: str, bug: str) -> None:
    found = search(Net(BUGS[bug]), name)
    assert found.broken
    assert found.first is not None
    assert found.first.owner == "second"
    assert found.first.call_index == 0
    assert found.first.error > 1e-3
    assert found.first.shape == (6, parse_group(name).vector_dimension)
    assert {"relu": "relu", "power": "pow", "bias": "add", "fixed": "mul"}[bug] in found.first.op
    assert any("mul" in words and "axes v" in words for words in found.first.inputs)


@pytest.mark.parametrize(
    ("bug", "broken"), [(lambda y: y + 5e-6 * torch.relu(y), True), (lambda y: (8e3 * y).floor() / 8e3, False)]
)
def test_of_little_in_the_output_it_counts_what_made_it(bug: Any, broken: bool) -> None:
    """What rounds is off by little itself; an op that does not transform at all breaks the symmetry."""
    found = search(Net(bug), "C4")
    assert 1e-6 < max(found.output_error.values()) < 1e-5
    assert found.broken == broken
    assert ("relu" in "".join(found.told())) == broken


def test_what_breaks_later_is_not_named() -> None:
    found = search(nn.Sequential(nn.ReLU(), nn.Sigmoid()), "D3")
    assert found.first is not None
    assert found.first.owner == "0"
    assert "relu" in found.first.op


def test_of_two_breaks_side_by_side_the_first_to_run_is_named() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + torch.sigmoid(x)

    found = search(Both(), "D3").first
    assert found is not None
    assert "relu" in found.op


def test_points_that_are_picked_are_no_break_and_what_their_origin_matters_to_is() -> None:
    class Origin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            there = x[[1, 2, 3, 4, 5, 0]]
            return x - there + 0.1 * torch.linalg.cross(x, there)

    def act(g: Tensor, x: Tensor) -> Tensor:
        return x @ g[:3, :3].T + g[:3, 3]

    first = search(Origin(), "SE3", act_output=lambda g, y: y @ g[:3, :3].T, act=act).first
    assert first is not None
    assert "cross" in first.op


def test_a_bug_that_reaches_no_output_is_none() -> None:
    class Aside(Net):
        def forward(self, x: Tensor) -> Tensor:
            torch.relu(x)
            return super().forward(x)

    assert search(Aside(), "D3").first is None


@pytest.mark.parametrize(("name", "cyclic"), [("D3", "C3"), ("D6", "C6"), ("O2", "SO2")])
def test_the_sum_of_two_that_reflections_turn_otherwise_is_the_break(name: str, cyclic: str) -> None:
    """What a quarter turn makes of vectors transforms, too, but by another representation."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    net = Net(lambda y: y @ quarter.T)
    assert not search(net, cyclic).broken
    found = search(net, name)
    assert found.broken
    assert found.output_error["reflection"] > 1e-3
    assert found.first is not None
    assert (found.first.owner, found.first.op) == ("", "aten.add.Tensor")


@pytest.mark.parametrize("spoil", [lambda y: y**2, lambda y: y.abs()])
def test_what_permutes_axes_transforms_under_a_cube_and_its_sum_with_vectors_does_not(spoil: Any) -> None:
    found = search(Net(spoil), "OCTA").first
    assert found is not None
    assert (found.owner, found.op) == ("", "aten.add.Tensor")
    assert len(found.inputs) == 2


def test_the_wrong_action_on_the_output_is_broken_but_no_op_is_to_blame() -> None:
    found = search(Net(), "D3", act_output=lambda g, y: y)
    assert found.broken
    assert found.first is None


def test_an_output_that_is_not_finite_is_broken() -> None:
    assert search(Net(lambda y: y / 0.0 * 0.0), "D3").broken
    odd = search(Net(), "D3", act_output=lambda g, y: y @ g.T / (g.det() > 0))
    assert odd.broken
    assert odd.output_error["rotation"] < 1e-9


class Branching(nn.Module):
    """Takes another path where the first coordinate of the first row is negative."""

    def forward(self, x: Tensor) -> Tensor:
        y = 2 * x
        return y * 1.0 if bool(x[0, 0] > 0) else y + 0.0


def test_another_path_under_another_element_is_the_break() -> None:
    group = parse_group("C2")
    inputs = random(4, 2)
    inputs[0, 0] = 1.0
    symmetry = Symmetry(group, lambda g, x: x @ g.T, lambda g, y: 1.1 * y @ g.T)
    found = find_breaks(Branching(), symmetry, inputs).first
    assert found is not None
    assert found.owner == ""
    assert "the ops that run depend on the group element" in found.op
    assert found.error == float("inf")


def test_an_action_that_is_none_is_refused() -> None:
    with pytest.raises(TaskError, match="an action of D3"):
        search(Net(), "D3", act=lambda g, x: x @ g)
