"""The table of a plan is the same before branches are in the model and afterwards."""

from __future__ import annotations

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
    surgeon.relax(net, plan)
    assert shares() == before
