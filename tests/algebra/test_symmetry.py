"""An action has to be one: what is refused, and what passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.finding.measurement import all_rows_equal
from tests.finding.inference.probes import random

GROUPS = ["C1", "C2", "C3", "D3", "D6", "OCTA", "OCTAH", "O2", "SO3", "O3", "SO13"]


def check(name: str, act: Any, *inputs: Any) -> None:
    Symmetry(parse_group(name), act).check(inputs, torch.Generator().manual_seed(0))


def rows(name: str) -> Tensor:
    return random(5, parse_group(name).dimension)


@pytest.mark.parametrize("name", GROUPS[1:])
def test_rows_that_are_multiplied_from_the_right_are_an_action(name: str) -> None:
    check(name, lambda g, x: x @ g.T, rows(name))
    check(name, lambda g, x: (x.float() @ g.float().T).double(), rows(name))  # rounding is no fault of the action


@pytest.mark.parametrize("name", ["D3", "D6", "OCTA", "OCTAH", "O2", "SO3", "O3", "SO13"])
def test_elements_that_act_in_the_wrong_order_are_refused(name: str) -> None:
    with pytest.raises(TaskError, match=f"an action of {name}, but acting by h and then by g differs.*x @ g.T"):
        check(name, lambda g, x: x @ g, rows(name))


@pytest.mark.parametrize("name", GROUPS)
def test_an_identity_that_changes_the_batch_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match=r"the identity changes the batch by 1.0e-05"):
        check(name, lambda g, x: 1.00001 * x @ g.T, rows(name))


def test_an_action_that_forgets_a_part_is_refused() -> None:
    """Nothing tells ``g (h x)`` from ``(g h) x``."""
    with pytest.raises(TaskError, match="the identity changes the batch by"):
        check("D3", lambda g, x: torch.cat([x[:, :2] @ g.T, 0 * x[:, 2:]], -1), random(5, 3))


@pytest.mark.parametrize("name", ["C2", "D3", "D6", "OCTAH", "O2", "O3"])
def test_an_action_that_is_none_on_reflections_alone_is_refused(name: str) -> None:
    def act(g: Tensor, x: Tensor) -> Tensor:
        turned = x @ g.T
        return 2 * turned if g.det() < 0 or name == "C2" and g[0, 0] < 0 else turned

    with pytest.raises(TaskError, match="acting by h and then by g"):
        check(name, act, rows(name))


@pytest.mark.parametrize("seed", range(4))
def test_rotations_rounded_to_quarter_turns_are_no_action(seed: int) -> None:
    def act(g: Tensor, x: Tensor) -> Tensor:
        return torch.rot90(x, round(float(torch.atan2(g[1, 0], g[0, 0])) / (torch.pi / 2)), (-2, -1))

    symmetry = Symmetry(parse_group("SO2"), act)
    with pytest.raises(TaskError, match="action of SO2"):
        symmetry.check((torch.randn(2, 5, 5, dtype=torch.float64),), torch.Generator().manual_seed(seed))


def test_an_action_that_is_not_finite_somewhere_is_refused() -> None:
    with pytest.raises(TaskError, match="acting by h and then by g differs from acting by gh by inf"):
        check("D3", lambda g, x: x @ g.T / (g.det() > 0), rows("D3"))
    with pytest.raises(TaskError, match="the identity changes the batch by nan"):
        check("D3", lambda g, x: x @ g.T * torch.nan, rows("D3"))


@pytest.mark.parametrize("name", GROUPS)
def test_an_action_that_moves_nothing_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match=f"no element of {name} changes it"):
        check(name, lambda g, x: x, rows(name))


def test_an_action_that_one_generator_alone_shows_is_one() -> None:
    check("D3", lambda g, x: g.det() * x, rows("D3"))  # only reflections move the batch


def test_an_action_that_fails_says_how() -> None:
    with pytest.raises(TaskError, match="fails with RuntimeError: .*where g is a 2 x 2 matrix in float64"):
        check("C3", lambda g, x: x @ g.T, random(5, 3))


def test_an_action_returns_what_it_was_given() -> None:
    """Of one input its image, which may be a tuple if the input is one; of several a tuple."""
    x, one, pair = rows("C3"), "the moved batch itself, got a tuple of 1", "a tuple of 2 moved inputs, got"
    for act, inputs, words in [
        (lambda g, x: (x @ g.T,), (x,), one),
        (lambda g, x, y: x @ g.T, (x, x), f"{pair} Tensor"),
        (lambda g, x, y: (x @ g.T,), (x, x), f"{pair} a tuple of 1"),
    ]:
        with pytest.raises(TaskError, match=words):
            check("C3", act, *inputs)
    check("C3", lambda g, pair: (pair[0] @ g.T, pair[1]), (x, x))
    check("C3", lambda g, x, y: (x @ g.T, y), x, x)


def test_rows_that_show_nothing() -> None:
    same, varied = torch.ones(3, 2), random(3, 2)
    assert all_rows_equal((same, {"b": same}))
    assert not all_rows_equal((same, {"b": varied}))
    assert not all_rows_equal((torch.ones(1, 2), torch.arange(3), torch.tensor(1.0)))  # one row, labels, a number
