"""Tensors that look alike are judged together, and each as if it were alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.alike import AT_A_TIME, Alike, called_alike
from surgeon.finding.inference.hypotheses import residual_of
from surgeon.finding.inference.probe import TensorProbe
from surgeon.recording.calls import Calls
from tests.finding.inference.probes import elements_of, random


def test_what_a_second_one_is_asked_is_found_out_for_the_next_ones() -> None:
    asked: list[list[int]] = []

    def find(numbers: list[int]) -> list[float]:
        asked.append(numbers)
        return [number / 8 for number in numbers]

    count = AT_A_TIME + 3
    members = Alike(lambda number: number, count)
    assert [members.answer("of all", number, find) for number in range(count)] == [n / 8 for n in range(count)]
    assert asked == [[0], [*range(1, 1 + AT_A_TIME)], [*range(1 + AT_A_TIME, count)]]
    assert members.answer("of one", 5, find) == 5 / 8
    assert asked[-1] == [5]


def test_tensors_are_judged_together_as_each_is_alone() -> None:
    kind, elements = TensorType(irreps(elements_of("SO3").group, "2x1o")), elements_of("SO3")
    factors = (1.0, 1.1, 2.0)
    bases = [random(4, 6) for _ in factors]
    probes = [
        TensorProbe(elements, (x, *(factor * kind.act(g, x) for g in elements.all()[1:])))
        for factor, x in zip(factors, bases, strict=True)
    ]
    members = Alike(lambda number: probes[number], len(probes))
    together = [dataclasses.replace(each, alike=members, number=number) for number, each in enumerate(probes)]
    residuals = [residual_of(kind, each) for each in together]
    assert residuals == pytest.approx([0, 0.1 / 1.1, 0.5], abs=1e-12)
    assert residuals == pytest.approx([residual_of(kind, each) for each in probes], abs=1e-12)


def test_modules_are_alike_whose_tensors_have_the_same_shapes_in_all_runs() -> None:
    def call(rows: int) -> Calls:
        return [({"x": torch.zeros(rows, 3)}, torch.zeros(rows, 2))]

    runs = {"a": [call(4), call(4)], "b": [call(4), call(5)], "c": [call(4), call(4)]}
    assert called_alike(runs) == {"a": (["a", "c"], 0), "c": (["a", "c"], 1), "b": (["b"], 0)}
