"""Equivariance and projection error of functions whose symmetry is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.algebra.equivariance import Symmetry, equivariance_error, projection_error, relative_difference, summarise
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError

DOUBLE = torch.float64


def turn(g: Tensor, x: Any) -> Any:
    return x @ g.to(x).T


def errors(function: Any, group: str = "O3", **settings: int) -> Any:
    batches = [(torch.randn(5, 3, dtype=DOUBLE),) for _ in range(2)]
    return equivariance_error(function, batches, Symmetry(parse_group(group), turn, turn), **settings)


def test_an_equivariant_function_has_none_and_a_matrix_has_some() -> None:
    found = errors(lambda x: x * x.norm(dim=-1, keepdim=True))
    assert set(found) == {"identity", "inversion"}
    assert max(summary.maximum for summary in found.values()) < 1e-14
    matrix = torch.randn(3, 3, dtype=DOUBLE)
    assert errors(lambda x: x @ matrix)["identity"].median > 0.1


def test_each_component_is_judged_by_itself() -> None:
    axial = errors(lambda x: torch.linalg.cross(x, x.roll(1, 0)))
    assert axial["identity"].maximum < 1e-13
    assert axial["inversion"].mean == pytest.approx(2.0)


@pytest.mark.parametrize("name", ["D1", "D2", "D3", "D6"])
def test_a_map_that_is_broken_under_reflections_alone_is_seen_with_every_seed(name: str) -> None:
    group, batch = parse_group(name), torch.randn(5, 2, dtype=DOUBLE)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=DOUBLE)
    for seed in range(10):
        found = equivariance_error(lambda x: x @ quarter, [(batch,)], Symmetry(group, turn, turn), count=2, seed=seed)
        assert found["rotation"].maximum < 1e-12
        assert (found["reflection"].maximum, found["reflection"].worst) == (pytest.approx(2.0), "reflection")


def test_the_worst_element_is_named() -> None:
    group = parse_group("O3")
    drawn = {label: g for label, _, g in group.test_elements(torch.Generator().manual_seed(0), 4)}
    batch = torch.randn(5, 3, dtype=DOUBLE)

    def fails_once(x: Tensor) -> Tensor:
        return 3 * x if torch.equal(x, batch @ drawn["random inversion 2"].T) else x

    found = equivariance_error(fails_once, [(batch,)], Symmetry(group, turn, turn), count=4)
    assert (found["inversion"].worst, found["inversion"].maximum) == ("random inversion 2", pytest.approx(2.0))
    assert found["inversion"].median == 0.0
    assert found["identity"].maximum == 0.0


def test_counts_and_seed() -> None:
    matrix = torch.randn(3, 3, dtype=DOUBLE)
    torch.manual_seed(0)
    first = errors(lambda x: x @ matrix, "SO3", count=3, seed=1)["identity"]
    torch.manual_seed(0)
    assert errors(lambda x: x @ matrix, "SO3", count=3, seed=1)["identity"] == first
    torch.manual_seed(0)
    assert errors(lambda x: x @ matrix, "SO3", count=3, seed=2)["identity"] != first
    assert first.count == 2 * (3 + 3)  # batches, times generators and random elements


def test_functions_may_differentiate_inside() -> None:
    def force(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(x.norm(dim=-1).sin().sum(), x, create_graph=True)[0]

    assert errors(force)["inversion"].maximum < 1e-13


def test_relative_difference_is_the_largest_over_the_floating_tensors() -> None:
    left = {"a": torch.tensor([3.0, 4.0]), "b": [torch.tensor(1.0), torch.tensor([1, 2])]}
    right = {"a": torch.tensor([0.0, 4.0]), "b": [torch.tensor(4.0), torch.tensor([1, 9])]}
    assert relative_difference(left, right) == pytest.approx(3 / 4)
    assert relative_difference(right, left) == pytest.approx(3.0)
    assert relative_difference(right, right) == 0.0
    assert math.isnan(
        relative_difference([torch.tensor(math.nan), torch.tensor(1.0)], [torch.zeros(()), torch.ones(())])
    )


def test_a_large_energy_does_not_hide_wrong_forces() -> None:
    energy, forces = torch.tensor([-1e6]), torch.tensor([[1.0, 0.0, 0.0]])
    assert relative_difference((energy, -forces), (energy, forces)) == pytest.approx(2.0)
    pooled = relative_difference(torch.cat([energy, -forces[0]]), torch.cat([energy, forces[0]]))
    assert pooled < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_rounding_size_does_not_explode(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    noise, zeros = torch.full((7,), eps, dtype=dtype), torch.zeros(7, dtype=dtype)
    assert relative_difference(noise, zeros) == pytest.approx(0.01)
    assert relative_difference(noise, -noise) == pytest.approx(0.02)
    assert relative_difference(zeros, zeros) == 0.0
    assert relative_difference(noise + 1, zeros) > 1.0
    assert relative_difference([zeros[:0], noise], [zeros[:0], noise]) == 0.0


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), [torch.zeros(2), torch.zeros(2)]),
        (torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)),
        ([], []),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(left: Any, right: Any) -> None:
    with pytest.raises(TaskError, match="act_output"):
        relative_difference(left, right)


def test_summaries_keep_non_finite_errors_visible() -> None:
    assert summarise([1.0, 2.0, 6.0]).mean == 3.0
    assert summarise([1.0, 2.0, 6.0]).median == 2.0
    assert summarise([1.0, 6.0, 2.0], ["a", "b", "c"]).worst == "b"
    assert summarise([1.0, 6.0, math.nan], ["a", "b", "c"]).worst == "c"
    spoiled = summarise([1.0, math.nan, 2.0])
    assert (spoiled.mean, spoiled.maximum, spoiled.median, spoiled.count) == (math.inf, math.inf, 2.0, 3)


def test_no_batch_is_an_error() -> None:
    with pytest.raises(TaskError, match="at least one"):
        equivariance_error(lambda x: x, [], Symmetry(parse_group("O3"), turn, turn))


def test_projection_error_is_the_mean_over_batches() -> None:
    relaxed = [torch.tensor([1.1]), torch.tensor([2.0])]
    clean = [torch.tensor([1.0]), torch.tensor([4.0])]
    assert projection_error(relaxed, clean) == pytest.approx((0.1 + 0.5) / 2)
    assert projection_error(clean, clean) == 0.0
