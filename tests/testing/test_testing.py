"""The assertion that tests of networks are built on can fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average
from surgeon.algebra.representations.build import axes, irreps
from surgeon.errors import CheckFailedError
from surgeon.testing.equivariance import assert_equivariant


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_intertwiner_passes_and_a_random_map_fails(dtype: torch.dtype) -> None:
    group = parse_group("O3")
    rho_in, rho_out = irreps(group, "3x0e+2x1o"), irreps(group, "2x0e+3x1o")
    weight = torch.randn(rho_out.dimension, rho_in.dimension, dtype=dtype)
    intertwiner = average(weight, rho_out, rho_in)
    assert_equivariant(lambda x: x @ intertwiner.T, rho_in, rho_out, dtype=dtype)
    with pytest.raises(CheckFailedError, match="O3"):
        assert_equivariant(lambda x: x @ weight.T, rho_in, rho_out, dtype=dtype)


def test_the_component_that_fails_is_named() -> None:
    group = parse_group("O3")
    with pytest.raises(CheckFailedError, match="'inversion' it deviates"):
        assert_equivariant(lambda x: x, irreps(group, "1x1o"), irreps(group, "1x1e"))


@pytest.mark.parametrize("name", ["D1", "D2", "D3", "D4", "D6"])
def test_all_generators_of_a_finite_group_are_tried_with_every_seed(name: str) -> None:
    rho = axes(parse_group(name), "c v", {"c": 2})

    def turned(x: Tensor) -> Tensor:  # by a quarter: commutes with rotations, not with reflections
        x = x.unflatten(-1, (2, 2))
        return torch.stack([-x[..., 1], x[..., 0]], dim=-1).flatten(-2)

    for seed in range(10):
        with pytest.raises(CheckFailedError, match="'reflection'"):
            assert_equivariant(turned, rho, rho, elements=1, seed=seed)
    assert_equivariant(lambda x: 2 * x, rho, rho)
    assert_equivariant(turned, *[axes(parse_group("C4"), "c v", {"c": 2})] * 2)


def test_numbers_that_are_not_finite_are_not_equivariant() -> None:
    rho = axes(parse_group("D3"), "v", {})
    with pytest.raises(CheckFailedError, match="deviates by inf"):
        assert_equivariant(lambda x: torch.where(x[..., :1] > 0, x, torch.nan), rho, rho)


def test_lorentz_vectors() -> None:
    group = parse_group("SO13")
    rho = axes(group, "c v", {"c": 2})

    def mixed(x: Tensor) -> Tensor:
        return x.reshape(-1, 2, 4).flip(1).reshape(-1, 8)

    assert_equivariant(mixed, rho, rho)
    with pytest.raises(CheckFailedError):
        assert_equivariant(lambda x: x.flip(-1), rho, rho)
