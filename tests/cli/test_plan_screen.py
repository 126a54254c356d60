"""The table of a plan is the same before branches are in the model and afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import surgeon
from surgeon_cli.plan_screen import plan_table
from tests.tiny import Net
from tests.training.conftest import plan_of

pytestmark = pytest.mark.e3nn


def test_shares_are_those_of_the_model_without_branches() -> None:
    net = Net()
    plan = plan_of(net)

    def shares() -> list[str]:
        return [
            str(cell) for column in plan_table(plan, net).columns if column.header == "share" for cell in column.cells
        ]

    before = shares()
    assert len(before) == len(plan.sites)
    assert sum(float(share.removesuffix(" %")) for share in before) == pytest.approx(100, abs=0.2)
    surgeon.relax(net, plan, dense=True)
    assert shares() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "exact"),
        ({"verified": False}, "as annotated"),
        ({"fold_while": "a scalar is 1"}, "exact while a scalar is 1"),
        ({"fold_note": "half of it", "fold_while": "a scalar is 1"}, "half of it; exact while a scalar is 1"),
        ({"fold_note": "half of it"}, "half of it"),
        ({"fold": None, "fold_note": "not foldable: tied"}, "tied"),
        ({"fold": None}, "no"),
    ],
)
def test_a_fold_is_called_exact_only_where_that_was_seen_and_depends_on_nothing(
    changes: dict[str, Any], words: str
) -> None:
    net = Net()
    plan = plan_of(net)
    site = dataclasses.replace(plan.sites[0], **{"fold_note": "", **changes})
    columns = plan_table(dataclasses.replace(plan, sites=(site,)), net).columns
    assert [str(cell) for column in columns if column.header == "fold" for cell in column.cells] == [words]
