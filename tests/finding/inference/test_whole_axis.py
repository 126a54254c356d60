"""All of an axis at once: blocks of any size under groups without labels."""

from __future__ import annotations

from functools import reduce
from itertools import combinations
from operator import add

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, matrices, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.finding.inference.axis import AxisRows
from surgeon.finding.inference.whole_axis import _images, whole_axis_representation
from tests.finding.inference.probes import elements_of, probe_as, probe_of, random

O13 = parse_group("O13")
PAIRS = list(combinations(range(4), 2))


def bivectors(group: Group) -> Representation:
    """The second exterior power of the vector."""
    square = axes(group, "v w", {})
    wedge = torch.zeros(6, 4, 4, dtype=torch.float64)
    for matrix, (i, j) in zip(wedge, PAIRS, strict=True):
        matrix[i, j], matrix[j, i] = 0.5**0.5, -(0.5**0.5)
    down = wedge.flatten(1)
    images = {
        "algebra": (down @ square.generators().dense() @ down.mT).tolist(),
        "elements": (down @ square.element_actions().dense() @ down.mT).tolist(),
    }
    return matrices(group, images)


TERMS = {
    "bivectors": [bivectors(O13)],
    "multivectors": [trivial(O13, 1), axes(O13, "v", {}), bivectors(O13)],
    "two vectors": [axes(O13, "v", {}), axes(O13, "v", {}, (-1, -1, 1))],
    "between invariants": [trivial(O13, 2), axes(O13, "v c", {"c": 3}), trivial(O13, 1)],
}


@pytest.mark.parametrize("name", TERMS)
def test_blocks_of_an_axis(name: str) -> None:
    rho = reduce(add, TERMS[name])
    found = whole_axis_representation(probe_as(rho, 4, rho.dimension, rho.dimension), -1)
    assert found is not None
    assert [block.size for block in found.blocks] == [block.size for block in rho.blocks]
    g = O13.test_elements(torch.Generator().manual_seed(3), 2)[-1].g
    assert torch.allclose(found.action(g).dense(), rho.action(g).dense(), atol=1e-6)
    few = probe_as(rho, 2 * rho.dimension - 1, rho.dimension)
    assert whole_axis_representation(few, -1) is None


def test_what_as_many_rows_as_coordinates_allow_is_not_confirmed() -> None:
    noise = probe_of(elements_of("O13"), random(10, 5), lambda g, x: torch.randn_like(x))
    assert _images(AxisRows.along(noise, -1)) is None
    assert _images(AxisRows.along(probe_as(trivial(O13, 1) + axes(O13, "v", {}), 10, 5), -1)) is not None


def test_linear_maps_that_do_not_commute_as_the_group_are_none() -> None:
    def twice(g: Tensor, x: Tensor) -> Tensor:
        return x @ (g @ g).T

    assert whole_axis_representation(probe_of(elements_of("O13"), random(40, 4), twice), -1) is None
    assert whole_axis_representation(probe_of(elements_of("O13"), random(40, 4), lambda g, x: x @ g.T), -1) is not None


@pytest.mark.parametrize(("name", "found"), [("SO3", True), ("O2", True), ("D4", False)])
def test_groups_with_labels_are_tried_and_finite_ones_have_better_hypotheses(name: str, found: bool) -> None:
    probe = probe_as(axes(group := parse_group(name), "v", {}), 40, group.dimension)
    assert (whole_axis_representation(probe, -1) is not None) == found
