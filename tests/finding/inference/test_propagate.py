"""Features that are 0 on the whole batch take their type from the sum they enter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference import sums
from surgeon.finding.inference.hypotheses import Verdict
from surgeon.finding.inference.probe import Probe
from surgeon.finding.inference.propagate import type_by_use
from surgeon.finding.inference.sums import silent_results
from surgeon.recording.record import record
from tests.finding.inference.probes import elements_of, random


class Zero(nn.Module):
    """Returns zeros, through an op that is recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * x


class Net(nn.Module):
    """What ``use(zero(x), x)`` makes of a result that is always 0."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.zero, self.use = Zero(), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.zero(x), x)


def probed(use: Any, name: str = "D3") -> Probe:
    elements = elements_of(name)
    symmetry, x = Symmetry(elements.group, lambda g, x: x @ g.T), random(5, elements.group.dimension)
    model = Net(use)
    return Probe(model, symmetry, (x,), ["zero"], elements, recording=record(model, x))


def used(use: Any, name: str = "D3", index: int = 0) -> Verdict | None:
    probe = probed(use, name)
    return None if probe.recording is None else type_by_use(probe.recording, probe.sums, "zero", index)


def test_sums_are_followed_once_however_many_ways_lead_to_them() -> None:
    def use(z: Tensor, x: Tensor) -> Tensor:
        for _ in range(8):
            z = (z + x) + (z - x)
        return z

    found = list(sums.sums_entered(record(Net(use), random(2, 3)), [("zero", 0)]))
    assert len(found) == len(set(found)) == 8 * 3


@pytest.mark.parametrize("name", ["C3", "D3", "OCTA", "OCTAH", "SO3"])
@pytest.mark.parametrize("use", [lambda z, x: z + x, lambda z, x: x - z.clone(), lambda z, x: z.detach().add_(2 * x)])
def test_both_terms_of_a_sum_transform_alike(name: str, use: Any) -> None:
    verdict = used(use, name)
    assert verdict is not None
    assert verdict.type == TensorType(axes(parse_group(name), "v", {}))


def test_the_first_sum_that_tells_is_taken() -> None:
    verdict = used(lambda z, x: (z + torch.zeros_like(x)) + x)
    assert verdict is not None
    assert verdict.type == TensorType(axes(parse_group("D3"), "v", {}))


@pytest.mark.parametrize(
    "use",
    [
        lambda z, x: z * x,  # a product says nothing
        lambda z, x: z.sum(-1) + x[:, 0],  # nor does what is made of it
        lambda z, x: z + x.expand(2, -1, -1),  # nor a sum in which it is repeated
        lambda z, x: z + x.square(),  # a sum that transforms by nothing
        lambda z, x: z + torch.cat([x[:, :1] * 0, x[:, 1:] * 0], -1),  # a sum that is 0 itself
        lambda z, x: x,
    ],
)
def test_what_tells_nothing(use: Any) -> None:
    assert used(use) is None


def test_a_sum_that_is_0_in_one_coordinate_is_passed_over() -> None:
    norm = lambda x: torch.stack([x.norm(dim=-1), torch.zeros(len(x))], -1)  # noqa: E731
    assert used(lambda z, x: z + norm(x)) is None
    verdict = used(lambda z, x: z + norm(x) + 1.0 * x.norm(dim=-1, keepdim=True))
    assert verdict is not None
    assert verdict.type is not None
    assert verdict.type.is_invariant


def test_a_result_that_there_is_not() -> None:
    assert used(lambda z, x: z + x, index=1) is None


def test_of_the_runs_only_the_sums_are_kept_that_silent_results_enter() -> None:
    probe = probed(lambda z, x: torch.exp(z + x) + (x * 2 + 3))
    assert [value.values[0].shape for value in probe.sums.values()] == [(5, 2)]
    assert all(len(value.values) == len(probe.elements.all()) for value in probe.sums.values())
    silent_calls = {"zero": [({}, torch.zeros(4, 2))], "other": [({}, torch.ones(4, 2))]}
    assert silent_results(silent_calls) == [("zero", 0)]


def test_runs_that_differ_tell_nothing() -> None:
    flipped = lambda z, x: 2 * (z + x if bool(x[0, 0] > 0) else z + (x + 0.0))  # noqa: E731
    assert used(flipped, "C2") is None
    assert used(lambda z, x: 2 * (z + x), "C2") is not None


def test_a_sum_that_some_module_returns_is_taken_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "Watch", None)
    assert used(lambda z, x: z + x) is not None
