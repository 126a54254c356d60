"""Verdicts in float64 by the worst element, in other dtypes by what chance does not explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.algebra.equivariance import ErrorSummary, Symmetry, equivariance_error
from surgeon.algebra.groups.parse import parse_group
from surgeon.proof.equivariance import flipped_rows, less_equivariant
from surgeon.proof.rounding import RowErrors
from surgeon.proof.same_function import other_function

J = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def network(broken: float) -> Callable[[Tensor], Tensor]:
    """Invariant under rotations and reflections of the plane; with ``broken`` other than 0 under no reflection."""
    generator = torch.Generator().manual_seed(0)
    even, odd = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        y = torch.einsum("njc,ck->njk", x, even) + broken * torch.einsum("ij,njc,ck->nik", J, x, odd)
        return y.square().sum(-2)

    return run


def measured(broken: float, group: str, seed: int) -> dict[str, ErrorSummary]:
    generator = torch.Generator().manual_seed(seed)
    batches = [(torch.randn(16, 2, 3, generator=generator, dtype=torch.float64),) for _ in range(2)]
    act = lambda g, x: torch.einsum("ij,njc->nic", g, x)  # noqa: E731
    return equivariance_error(
        network(broken), batches, Symmetry(parse_group(group), act, lambda g, y: y), count=1, seed=seed
    )


@pytest.mark.parametrize("group", ["D2", "D3", "D4", "D6", "O2"])
def test_a_network_broken_under_every_reflection_is_refused_whatever_is_drawn(group: str) -> None:
    for seed in range(20):
        original, broken = ({"float64": measured(value, group, seed)} for value in (0.0, 0.5))
        assert less_equivariant({"original": original, "stripped": original}) == []
        (sentence,) = less_equivariant({"original": original, "stripped": broken})[:1]
        assert "(by " in sentence


def summary(maximum: float) -> dict[str, ErrorSummary]:
    return {"identity": ErrorSummary(maximum, maximum, maximum, 1, "random 1")}


def rows(errors: Tensor) -> dict[str, RowErrors]:
    found, ones = RowErrors(), torch.ones(len(errors), 1, dtype=torch.float64)
    found.add(0, ones + errors[:, None], ones)
    return {"identity": found}


EVEN = torch.full((32,), 1e-6, dtype=torch.float64)
ONE_FLIPPED = torch.cat([EVEN[1:], torch.full((1,), 1e-2, dtype=torch.float64)])


def test_a_flipped_tie_in_float32_is_chance_and_is_counted() -> None:
    """The result's maximum is ten thousand times the original's, in one row of 32."""
    both = {"original": rows(EVEN), "stripped": rows(ONE_FLIPPED)}
    for exact in ({"float64": summary(1e-15)}, {}):
        errors = {
            name: {"float32": summary(value), **exact} for name, value in (("original", 1e-6), ("stripped", 1e-2))
        }
        assert less_equivariant(errors, both) == []
    assert flipped_rows(both) == {"identity": {"original": [0, 32], "stripped": [1, 32]}}


def test_a_network_that_is_really_worse_in_float32_is_refused() -> None:
    both = {"original": rows(ONE_FLIPPED), "stripped": rows(1000 * EVEN)}
    for exact in ({"float64": summary(1e-15)}, {}):
        errors = {
            name: {"float32": summary(value), **exact} for name, value in (("original", 1e-2), ("stripped", 1e-3))
        }
        (sentence,) = less_equivariant(errors, both)
        assert "under identity in float32" in sentence
        assert "which chance explains with a probability of" in sentence


def test_too_few_rows_leave_it_to_float64_and_without_it_to_the_maximum() -> None:
    both = {"original": rows(EVEN[:4]), "stripped": rows(1000 * EVEN[:4])}
    errors = {name: {"float32": summary(value)} for name, value in (("original", 1e-6), ("stripped", 1e-3))}
    assert len(less_equivariant(errors, both)) == 1
    exact = {name: {**dtypes, "float64": summary(1e-15)} for name, dtypes in errors.items()}
    assert less_equivariant(exact, both) == []


def test_one_broken_element_of_a_component_is_enough() -> None:
    broken = {"float64": {"identity": ErrorSummary(0.1, 1e-16, 0.3, 4, "random 2")}}
    (sentence,) = less_equivariant({"original": {"float64": summary(1e-16)}, "stripped": broken})
    assert "got 3.0e-01 (by random 2)" in sentence


def test_not_a_number_is_refused() -> None:
    errors = {name: {"float64": summary(value)} for name, value in (("original", 1e-15), ("stripped", float("nan")))}
    assert len(less_equivariant(errors)) == 1


def nearest(x: Tensor) -> Tensor:
    """The farthest of three points decides, two of which are nearly equally far: a tie that rounding flips."""
    chosen = x.norm(dim=-1).argmax(dim=1)
    return torch.take_along_dim(x, chosen[:, None, None], dim=1)[:, 0]


def ties(count: int) -> Tensor:
    """Samples of three points each; in the first ``count`` of them two are equally far but for float32's rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, 2, generator=generator)
    x[:count, 1] = -x[:count, 0] * (1 + 2e-7)
    x[:count, 2] *= 0.01
    return x


def flipping(x: Tensor) -> Tensor:
    """The same function after another rounding of what it compares: each tie goes the other way."""
    return nearest(x.double() * torch.tensor([1.0, 1 - 1e-6, 1.0], dtype=torch.float64)[:, None]).to(x.dtype)


def test_ties_that_rounding_flips_are_no_other_function() -> None:
    x = ties(3)
    assert other_function(flipping, [x], [nearest(x)], torch.float32) == ""
    sentence = other_function(flipping, [x.double()], [nearest(x.double())], None)
    assert "differs from clean evaluation by" in sentence  # where nothing is rounded, nothing is forgiven


@pytest.mark.parametrize("change", [lambda y: 1.002 * y, lambda y: torch.cat([y[:16], y[16:] + 0.1])])
def test_another_function_is_not_forgiven(change: Callable[[Any], Any]) -> None:
    x = ties(3)
    sentence = other_function(lambda batch: change(nearest(batch)), [x], [nearest(x)], torch.float32)
    assert "which rounding explains with a probability of" in sentence


def test_with_too_few_rows_a_deviation_is_another_function() -> None:
    x = ties(1)[:4]
    assert "too few rows" in other_function(flipping, [x], [nearest(x)], torch.float32)
    assert other_function(nearest, [x], [nearest(x)], torch.float32) == ""
