"""Planted bugs: the search for breaks names the module that makes the first tensor which does not transform."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

import surgeon
from surgeon.errors import NotASymmetryError
from surgeon.finding.breaks import Breaks, find_breaks
from surgeon.finding.resolution import constructions
from surgeon.support.modes import default_dtype
from tests.families.awkward.broken import BROKEN, Broken
from tests.families.awkward.case import Case
from tests.families.awkward.sampled import CASES, NEARLY, Circle
from tests.families.awkward.test_catalogue import build, find

EACH = pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.case.name)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Models create constants as they run."""
    with default_dtype(torch.float64):
        yield


def search(case: Case) -> Breaks:
    return find_breaks(build(case), case.symmetry, *case.inputs())


@EACH
def test_the_break_is_found(broken: Broken) -> None:
    found = search(broken.case)
    assert max(found.output_error.values()) > 1e-3
    assert found.first is not None
    assert found.first.owner == broken.owner, found.first
    assert bool(found.first.sampled) == (broken.case.name == "sampled activation")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((6,), r"falls with its resolution: .*, and .* with the model made with samples = 12 in place of 6"),
        ((12, False, 0.4), "is no matter of resolution"),
        ((12, True), "was not tried"),  # each sample has a trained weight
    ],
    ids=["a circle", "an arc", "with weights of their own"],
)
def test_samples_are_made_finer_where_they_can_be(arguments: tuple[int, bool, float], says: str) -> None:
    symmetry, inputs = NEARLY[0].symmetry, NEARLY[0].inputs()
    with constructions() as seen:
        model = Circle(*arguments)
    made = seen.of(model)
    torch.nn.init.uniform_(model.sizes, 0.5, 1.5) if arguments[1:] == (True,) else None
    found = find_breaks(model, symmetry, *inputs, made=made)
    assert found.first is not None
    assert re.search(says, found.first.resolution)
    assert found.first.resolution in found.told()[3]
    assert "was not tried" in (find_breaks(model, symmetry, *inputs).told()[3])


def test_functions_of_samples_are_no_functions_of_components() -> None:
    """The values along six corners transform as vectors do, as far as can be seen."""
    (corners,) = (case for case in CASES if case.name == "few samples on a sphere")
    first = search(corners).first
    assert first is not None
    assert first.op == "aten.tanh.default"
    assert "by a fixed table, 7 x 3 x 6" in first.sampled


@EACH
def test_without_the_bug_there_is_none(broken: Broken) -> None:
    found = search(broken.repaired)
    assert found.first is None
    assert max(found.output_error.values()) < 1e-9


@EACH
def test_nothing_is_relaxed_in_a_broken_network(broken: Broken) -> None:
    with pytest.raises(NotASymmetryError, match="to be a symmetry") as caught:
        find(broken.case, build(broken.case))
    (note,) = (note for note in caught.value.plan.notes if "own output deviates" in note)
    assert all(f" under {component}" in note for component in search(broken.case).output_error)
    assert isinstance(find(broken.repaired, build(broken.repaired)), surgeon.Plan)
