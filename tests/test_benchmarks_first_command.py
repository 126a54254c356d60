"""The first command's benchmark: the table in the docs comes from its record, and every stage is in it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("first_command")


def test_another_record_gives_another_table(benchmark_: Any) -> None:
    text, record = benchmark_.PAGE.read_text("utf-8"), json.loads(benchmark_.RESULTS.read_text("utf-8"))
    assert record["counts"]["planning_forwards"] + record["counts"]["planning_backwards"] <= 40
    record["runs"].append({**record["runs"][0], "wall_s": 0.1})
    assert benchmark_.page(text, record) != text


def test_stages_are_read_from_the_lines_of_the_command(benchmark_: Any) -> None:
    text = "opened a network of 57,248 parameters (1.2 s)\nchecked 15 annotated ops (0.1 s)\nmetric (lower is better)\n"
    assert benchmark_.STAGE.findall(text) == [
        ("opened a network of 57,248 parameters", "1.2"),
        ("checked 15 annotated ops", "0.1"),
    ]
