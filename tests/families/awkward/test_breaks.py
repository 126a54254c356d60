"""Planted bugs: the search for breaks names the module that makes the first tensor which does not transform."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import surgeon
from surgeon.errors import NotASymmetryError
from surgeon.finding.breaks import Breaks, find_breaks
from surgeon.support.modes import default_dtype
from tests.families.awkward.broken import BROKEN, Broken
from tests.families.awkward.case import Case
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
