"""Images of generators have to multiply as the generators do."""

from __future__ import annotations

import pytest
import torch

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, irreps, regular
from surgeon.finding.inference.relations import respects_brackets, respects_relations
from tests.finding.inference.probes import random


@pytest.mark.parametrize("name", ["C2", "C3", "D3", "D6", "OCTA", "OCTAH"])
def test_only_representations_respect_the_relations(name: str) -> None:
    group = parse_group(name)
    for images in (group.elements, regular(group, 1).action(group.elements).dense()):
        assert respects_relations(group, list(images))
        assert not respects_relations(group, [1.1 * images[0], *images[1:]])
        assert not respects_relations(group, [*images[:-1], 1.0001 * images[-1]])
    assert not respects_relations(group, list(random(len(group.elements), 2, 2)))


def test_relations_between_generators_count() -> None:
    group = parse_group("D3")  # s r s = r^-1: a reflection that commutes with the rotation is none
    rotation, identity = group.elements[0], torch.eye(2, dtype=torch.float64)
    assert not respects_relations(group, [rotation, -identity])
    assert respects_relations(group, [identity, -identity])
    assert respects_relations(parse_group("C6"), [-identity])
    assert not respects_relations(parse_group("C3"), [-identity])


@pytest.mark.parametrize("name", ["SO2", "O2", "SO3", "O3", "E3", "SO13", "O13"])
def test_only_representations_respect_the_brackets(name: str) -> None:
    group = parse_group(name)
    rhos = [axes(group, "v", {}), axes(group, "v w", {})]
    for rho in [*rhos, irreps(group, "1x2e+1x1o")] if name in ("SO3", "O3", "E3") else rhos:
        algebra = list(rho.derivative(group.feature_algebra).dense())
        elements = list(rho.action(group.elements).dense())
        assert respects_brackets(group, algebra, elements)
        assert respects_brackets(group, algebra, [-element for element in elements])  # another parity
        if len(algebra) > 1:
            assert not respects_brackets(group, [-a for a in algebra], elements)
            assert not respects_brackets(group, [1.001 * a for a in algebra], elements)
            assert not respects_brackets(group, [algebra[1], algebra[0], *algebra[2:]], elements)
            spoiled = [element @ torch.linalg.matrix_exp(algebra[0]) for element in elements]
            assert not respects_brackets(group, algebra, spoiled) or not elements


def test_a_reflection_of_the_plane_turns_the_rotations_round() -> None:
    group = parse_group("O2")
    turn, identity = group.algebra[0], torch.eye(2, dtype=torch.float64)
    assert respects_brackets(group, [3 * turn], [group.elements[0]])
    assert not respects_brackets(group, [3 * turn], [identity])
