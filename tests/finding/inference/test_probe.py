"""Runs under the group: which elements, in which order, and what is kept of every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.finding.inference.probe import CHECKS, STEP, Elements, Probe, sums
from surgeon.recording.calls import captured_results
from surgeon.support.trees import tensors_in
from tests.finding.inference.probes import elements_of, probe_of, random


@pytest.mark.parametrize("name", ["C2", "C3", "D3", "D6", "OCTA", "OCTAH"])
def test_a_finite_group_is_judged_by_every_generator_and_by_others(name: str) -> None:
    elements, group = elements_of(name), parse_group(name)
    count = len(group.elements)
    assert len(elements.small) == 0
    assert torch.equal(elements.components, group.elements)
    assert [judge.label for judge in elements.judges[:count]] == list(group.element_names)
    assert len(elements.checks) == min(CHECKS, len(group.all_elements()) - 1 - count)
    assert not any(torch.allclose(check, g) for check in elements.checks for g in group.elements)


@pytest.mark.parametrize(("name", "generators"), [("SO2", 1), ("O2", 1), ("SO3", 3), ("O3", 3), ("E3", 3), ("SO13", 6)])
def test_a_lie_group_is_judged_in_every_component_and_measured_by_small_steps(name: str, generators: int) -> None:
    elements, group = elements_of(name), parse_group(name)
    size = group.dimension
    assert elements.small.shape == (generators, 2, size, size)  # translations turn no features
    for plus, minus, generator in zip(*elements.small.unbind(1), group.algebra, strict=False):
        assert torch.allclose(plus, torch.linalg.matrix_exp(STEP * generator))
        assert torch.allclose(plus @ minus, torch.eye(size, dtype=torch.float64), atol=1e-15)
    assert torch.equal(elements.components, group.elements)
    judged = [judge.component for judge in elements.judges]
    assert {component: judged.count(component) for component in group.component_names} == {
        component: CHECKS + (generators if component == group.component_names[0] else 0)
        for component in group.component_names
    }


@pytest.mark.parametrize("name", ["C3", "D3", "OCTAH", "O2", "O3", "O13"])
def test_every_run_is_read_under_its_own_element(name: str) -> None:
    elements = elements_of(name)
    size = elements.group.dimension
    x = random(7, size)
    probe = probe_of(elements, x, lambda g, x: x @ g.T)
    assert torch.equal(probe.base, x)
    assert len(probe.values) == len(elements.all())
    pairs = list(zip(probe.values[1::2], probe.values[2::2], strict=False))[: len(elements.small)]
    for (plus, minus), (y_plus, y_minus) in zip(elements.small, pairs, strict=True):
        assert torch.equal(y_plus, x @ plus.T)
        assert torch.equal(y_minus, x @ minus.T)
    for read in (probe.components(), list(zip(*probe.checks(), strict=True))):
        assert all(torch.equal(moved, x @ g.T) for g, moved in read)
    assert [g.tolist() for g, _ in probe.components()] == elements.components.tolist()
    assert probe.checks()[0].tolist() == [judge.g.tolist() for judge in elements.judges]
    assert [judge.g.tolist() for judge in elements.judges] == [*elements.components.tolist(), *elements.checks.tolist()]


class Twice(nn.Module):
    """Calls one layer twice, once by name, draws random numbers, and changes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.layer(x)
        second = self.layer(input=2 * first)
        kept = second + 0.0
        second.zero_()
        x.zero_()
        return {"y": kept, "noise": torch.rand(3)}


def probe_twice(name: str = "D3") -> tuple[Any, Twice, Tensor, Elements]:
    model, elements, x = Twice(), elements_of(name), random(5, 2)
    symmetry = Symmetry(parse_group(name), lambda g, x: x @ g.T)
    return Probe(model, symmetry, (x,), ["layer"], elements), model, x, elements


def test_calls_are_kept_as_they_were() -> None:
    probe, model, x, elements = probe_twice()
    weight = model.layer.weight
    assert x.any()  # the model zeroes its own copies only
    assert len(probe.outputs) == len(elements.all())
    for index, g in enumerate(elements.all()):
        calls = probe.calls("layer")[index]
        assert len(calls) == 2
        first = x @ g.T
        assert torch.allclose(calls[0][0]["input"], first)
        assert torch.allclose(calls[1][0]["input"], 2 * first @ weight.T)
        assert torch.allclose(calls[1][1], 2 * first @ weight.T @ weight.T)
        assert torch.allclose(probe.outputs[index]["y"], calls[1][1])
        assert torch.equal(probe.outputs[index]["noise"], probe.outputs[0]["noise"])
        assert not probe.outputs[index]["y"].requires_grad
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks


def test_a_tensor_is_followed_through_all_runs() -> None:
    probe, _, x, elements = probe_twice()
    second = probe.tensor("layer", lambda arguments, result: result, call=1)
    given = probe.tensor("layer", lambda arguments, result: arguments["input"])
    assert torch.equal(given.base, x)
    for index in range(len(elements.all())):
        assert torch.equal(second.values[index], probe.calls("layer")[index][1][1])
        assert torch.equal(given.values[index], probe.calls("layer")[index][0][0]["input"])


def test_what_does_not_fit_is_put_away() -> None:
    """A probe that holds no calls gives the same as one that holds all, and runs the model no more often."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(2, 2, dtype=torch.float64) for _ in range(3)))
    runs: list[Tensor] = []

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        runs.append(x)
        return net(x)

    @contextmanager
    def doubled() -> Iterator[None]:
        with torch.no_grad():
            model[0].weight.mul_(2)
            yield
            model[0].weight.mul_(0.5)

    names, elements, x = ["0", "1", "2"], elements_of("D3"), random(5, 2)
    symmetry = Symmetry(parse_group("D3"), lambda g, x: x @ g.T, None, forward)
    none, all_of_them = (Probe(model, symmetry, (x,), names, elements, doubled, held) for held in (1, 2**20))
    count = len(elements.all())
    away = [tensors_in(probe._calls) for probe in (none, all_of_them)]
    assert [sum(tensor.numel() for tensor in tensors) for tensors in away] == [0, 3 * 2 * (count - 1) * x.numel()]
    assert len(runs) == 2 * count
    for name in (*names, "1", "1"):
        for left, right in zip(none.calls(name), all_of_them.calls(name), strict=True):
            ((given, result),), ((expected_given, expected),) = left, right
            assert torch.equal(given["input"], expected_given["input"])
            assert torch.equal(result, expected)
    all_of_them.release("1")
    assert not any(tensor.numel() for tensor in tensors_in(all_of_them._calls))
    assert torch.equal(all_of_them.calls("1")[1][0][1], none.calls("1")[1][0][1])
    assert len(runs) == 2 * count


class Gated(nn.Module):
    """One layer, and what else a model may do where it has no gradients."""

    def __init__(self, otherwise: str) -> None:
        super().__init__()
        self.layer, self.otherwise = nn.Linear(2, 2, bias=False, dtype=torch.float64), otherwise

    def forward(self, x: Tensor) -> Tensor:
        if self.otherwise == "differentiates":
            x = x + torch.autograd.grad(self.layer(x.requires_grad_()).sum(), x)[0]
        otherwise = "" if torch.is_grad_enabled() else self.otherwise
        order = slice(None) if otherwise != "reorders" else torch.arange(len(x)).flip(0)  # its own inverse
        y: Tensor = self.layer.forward(x) if otherwise == "fused" else self.layer(x[order])[order]
        return y * (1 + 1e-15) if otherwise == "rounds" else y


@pytest.mark.parametrize("otherwise", ["", "fused", "reorders", "rounds", "differentiates"])
def test_runs_do_without_gradients_where_that_changes_nothing(otherwise: str) -> None:
    torch.manual_seed(0)
    model, x = Gated(otherwise), random(5, 2)
    calls = 1 + (otherwise == "differentiates")
    symmetry = Symmetry(parse_group("C3"), lambda g, x: x @ g.T)
    with captured_results({"layer": model.layer}, sums) as results:
        seen = model(x.clone()).detach(), results
    probe = Probe(model, symmetry, (x,), ["layer"], elements_of("C3"), gradients=seen)
    assert probe.gradients is bool(otherwise)
    assert torch.equal(probe.outputs[0], seen[0])
    assert all(len(run) == calls for run in probe.calls("layer"))


def test_random_numbers_are_the_same_in_every_run_and_those_after_as_without() -> None:
    symmetry = Symmetry(parse_group("C3"), lambda g, x: x @ g.T, None, lambda model, x: torch.rand(2))
    torch.manual_seed(3)
    probe = Probe(nn.Identity(), symmetry, (random(2, 2),), [], elements_of("C3"))
    after = torch.rand(1)
    torch.manual_seed(3)
    random(2, 2)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(output, probe.outputs[0]) for output in probe.outputs)
