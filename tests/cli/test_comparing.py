"""A comparison starts where a single run would, and loses no finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.surgery import Relaxation
from tests.commands import Surgeon, files_in

COMPARE = ("finetune", "net-relaxed", "--epochs", "1", "--seeds", "1", "--compare")
RECORD = Path("net-compare.json")


def strict(text: str) -> Any:
    """Read JSON without NaN and Infinity, which only Python takes."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def trouble(what: str, at: int) -> tuple[str, ...]:
    """Return the options that make the task misbehave in its training batch ``at``; a run has 3, its check 1 more."""
    return "--task", "task.py", "--task-args", json.dumps({"trouble": what, "at": at})


def test_the_schedule_of_the_folder_is_used(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    usual = Relaxation.set_progress

    def set_progress(relaxation: Relaxation, progress: float, scale: float = 1.0) -> None:
        seen.add(relaxation.schedule.name)
        usual(relaxation, progress, scale)

    surgeon("relax", "net.pt", "--schedule", "one-sided")
    monkeypatch.setattr(Relaxation, "set_progress", set_progress)
    surgeon(*COMPARE, "drop")
    assert seen == {"one-sided"}
    assert strict(RECORD.read_text())["settings"]["schedule"]["name"] == "one-sided"


def branch_norms(surgeon: Surgeon, folder: str) -> list[float]:
    """Return |W| at the end of a comparison whose steps are too small to move it."""
    command = ("finetune", folder, "--epochs", "1", "--seeds", "1", "--compare", "drop", "--lr", "1e-30", "--json")
    (run,) = surgeon(*command, "-o", f"{folder}.json").data["runs"]
    return [site["norm"] for site in run["sites"]]


def test_an_untrained_folder_gives_its_branches_and_a_run_does_not(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt", "--init-scale", "1")
    defined = surgeon("strip", "net-relaxed", "--json").data["certificate"]["sites"]
    assert branch_norms(surgeon, "net-relaxed") == pytest.approx([site["norm"] for site in defined])
    assert min(site["norm"] for site in defined) > 0.1
    surgeon("finetune", "net-relaxed", "--epochs", "1", "--lr", "1e-2")
    assert max(branch_norms(surgeon, "net-run")) < 1e-20


def test_the_seed_shifts_the_seeds(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt")
    command = ("finetune", "net-relaxed", "--epochs", "1", "--compare", "plain")
    both = surgeon(*command, "--seeds", "2", "--seed", "5", "--json").data["runs"]
    assert [run["seed"] for run in both] == [5, 6]
    (shifted,) = surgeon(*command, "--seeds", "1", "--seed", "6", "-o", "one.json", "--json").data["runs"]
    assert shifted["test"] == both[1]["test"] != both[0]["test"]


@pytest.mark.parametrize(("what", "words"), [("stop once", "interrupted"), ("nan", "the task loss became nan")])
def test_a_run_that_fails_leaves_the_finished_ones(surgeon: Surgeon, what: str, words: str) -> None:
    surgeon("relax", "net.pt")
    told = surgeon(*COMPARE, "plain,drop", *trouble(what, 6), code=2).err
    assert words in told
    assert "finished runs, 1 of them, are in net-compare.json" in told
    record = strict(RECORD.read_text())
    assert record["complete"] is False
    assert [(run["arm"], run["steps"]) for run in record["runs"]] == [("plain", 3)]
    assert [row["arm"] for row in record["rows"]] == ["plain"]
    surgeon(*COMPARE, "plain,drop", "--force")
    record = strict(RECORD.read_text())
    assert (record["complete"], len(record["runs"])) == (True, 2)


def test_without_a_finished_run_nothing_is_written(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt")
    before = files_in(surgeon.path)
    told = surgeon(*COMPARE, "plain,drop", *trouble("stop once", 2), code=2).err
    assert "no run of the comparison was finished, nothing was written" in told
    assert files_in(surgeon.path).keys() - before.keys() == {"stopped"}


def test_a_finished_sweep_is_kept_as_well(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt")
    told = surgeon(*COMPARE, "plain", "--lr-grid", "1e-2,1e-3", *trouble("stop once", 8), code=2).err
    assert "no run of the comparison was finished, the sweep is in net-compare.json" in told
    record = strict(RECORD.read_text())
    assert (record["complete"], record["runs"]) == (False, [])
    surgeon(*COMPARE, "plain", "--lr-record", str(RECORD), "-o", "after.json")
    assert strict(Path("after.json").read_text())["runs"][0]["learning_rate"] == record["sweep"]["best"]["plain"]


def test_one_seed_has_no_interval_and_its_record_no_nan(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt")
    printed = strict(surgeon(*COMPARE, "plain,drop", "--lr-grid", "1e-2,1e30", "--json").out)
    assert [row["half_width"] for row in printed["rows"]] == [None, None]
    surgeon("finetune", "net-relaxed", "--epochs", "1")
    surgeon("strip", "net-run")
    read = 0
    for path in surgeon.path.rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            strict(text)
            read += 1
    assert read >= 6
