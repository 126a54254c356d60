"""The table of a plan: narrow, with alike ops in one row, the same before and after branches are in the model."""

from __future__ import annotations

import dataclasses
import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from e3nn import o3
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import surgeon
from surgeon.plan import AuditEntry, Plan
from surgeon_cli.plan_screen import audit_table, plan_table
from surgeon_cli.screen import fit, print_table
from tests.tiny import Net
from tests.training.conftest import plan_of

pytestmark = pytest.mark.e3nn


def cells(plan: Plan, net: Net, heading: str) -> list[str]:
    return [str(cell) for column in plan_table(plan, net).columns if column.header == heading for cell in column.cells]


def test_shares_are_those_of_the_model_without_branches() -> None:
    net = Net()
    plan = plan_of(net)

    def shares() -> list[str]:
        return [cell.rpartition(", ")[2] for cell in cells(plan, net, "op")]

    before = shares()
    assert len(before) == len(plan.sites)
    assert sum(float(share.removesuffix(" %")) for share in before) == pytest.approx(100, abs=0.2)
    surgeon.relax(net, plan, dense=True)
    assert shares() == before


class Chain(nn.Module):
    """Layers alike, apart from the fourth, whose output is larger."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [2, 2, 2, 2, 3, 3, 3]
        self.layers = nn.ModuleList([o3.Linear(f"{a}x1o", f"{b}x1o") for a, b in pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_ops_that_differ_by_a_number_alone_share_a_row() -> None:
    net = Chain()
    plan = surgeon.find(net, "O3", torch.randn(5, 6))
    assert [cell.splitlines()[0] for cell in cells(plan, net, "op")] == ["layers.0-2", "layers.3", "layers.4-5"]
    assert cells(plan, net, "op")[0].splitlines()[1] == "3 x linear, 33.3 %"  # 3 x 4 of 36 weights
    assert cells(plan, net, "branch")[0].startswith("3 x 36\n")
    other = dataclasses.replace(plan, sites=(plan.sites[0], plan.sites[2], plan.sites[4], plan.sites[5]))
    assert [cell.splitlines()[0] for cell in cells(other, net, "op")] == ["layers.0,2", "layers.4-5"]


def test_sites_of_one_module_are_told_apart() -> None:
    net = Net()
    plan = plan_of(net)
    first = plan.sites[0]
    both = dataclasses.replace(plan, sites=(first, dataclasses.replace(first, argument="other")))
    told = [cell.splitlines() for cell in cells(both, net, "op")]
    assert [names for names, _ in told] == [f"{first.name}: {first.slot}", f"{first.name}: other"]
    assert all(share.endswith(" % together") for _, share in told)


LONG = "message_block.linear_up.weight"


def drawn(table: Table, width: int) -> str:
    told = io.StringIO()
    fit(table, width)
    Console(file=told, width=width).print(table)
    assert "…" not in told.getvalue()
    assert max(map(len, told.getvalue().splitlines())) <= width
    return told.getvalue()


def test_at_80_columns_nothing_is_lost() -> None:
    """Irreps break between terms, never inside one."""
    net = Net()
    told = drawn(plan_table(plan_of(net), net), 80)
    for words in ("op", "representations in -> out", "branch", "first", "fold: exact"):
        assert words in told


def test_columns_give_way_down_to_their_longest_word() -> None:
    wide = Table("op", "representations", "what it is like")
    wide.add_row(LONG, "16x0e + 16x1o + 16x2e " * 3, "a sentence of some length " * 4)
    told = drawn(wide, 80)
    assert LONG in told
    assert told.count("16x1o") == 3
    assert told.count("sentence") == 4
    narrow = drawn(wide, 40)
    assert LONG not in narrow
    assert narrow.count("16x1o") == 3  # only the longest words are broken
    wide.add_row(LONG * 3, "", "")
    assert drawn(wide, 80).count("\n") < 18  # and they leave room


def test_parameters_of_an_audit_keep_their_names_whole() -> None:
    names = [f"layers.{number}.{LONG}" for number in range(12)]
    entries = [AuditEntry(name, 10, "not linear", "it is only added to an activation") for name in names]
    told = drawn(audit_table(entries), 80)
    assert "100.0 %" in told
    assert "not linear" in told
    assert f"layers.0-11.{LONG}" in told
    assert "more" not in told


def rows(entries: list[AuditEntry], verbose: bool) -> list[str]:
    table = audit_table(entries, verbose)
    return [str(cell) for cell in list(table.columns[3].cells)]


def test_reasons_that_differ_by_numbers_share_a_row_unless_all_are_wanted() -> None:
    reasons = [*(f"no type (residual {size})" for size in ("3.0e-01", "2.5e+00", "1.0e-03")), *["frozen"] * 6]
    entries = [AuditEntry(name, 1, "unexplained", why) for name, why in zip("abcdefghi", reasons, strict=True)]
    assert rows(entries, verbose=False) == [
        "no type (residual 1.0e-03 to 2.5e+00):\na, b, c",
        "frozen:\nd, e, f, g and 2 more, see inspect --verbose",
    ]
    assert rows(entries, verbose=True) == [
        *(f"{reason}:\n{name}" for name, reason in zip("abc", reasons, strict=False)),
        "frozen:\nd, e, f, g, h, i",
    ]


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
    (told,) = cells(dataclasses.replace(plan, sites=(site,)), net, "branch")
    assert told.splitlines()[1] == f"fold: {words}"


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("", 120)])
def test_a_pipe_is_as_wide_as_it_is_told(
    columns: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_table("title", [["a", "b"], ["word " * 40, "x"]])
    assert max(map(len, capsys.readouterr().out.splitlines())) == width
