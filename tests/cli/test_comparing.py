"""A comparison starts where a single run would, and loses no finished run."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import pickle
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from surgeon.editing.relaxation import Relaxation
from surgeon.errors import WriteError
from surgeon.opening.open import open_path
from surgeon.training.comparison import outcome_of
from surgeon.training.outcomes import Failure, Outcome, Point
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import Recipe, comparison_of, work
from surgeon.training.store import RunStore
from surgeon_cli.progress import TrainingBar
from surgeon_cli.screen import comparison_table, fit
from tests.commands import Surgeon, files_in
from tests.processes import forked
from tests.tiny import Net

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
    (run,) = surgeon(*command, "-o", f"{folder}.json", "--keep", "none").data["runs"]
    return [site["norm"] for site in run["sites"]]


def test_a_log_of_a_comparison_has_every_stage_of_every_run_with_its_seconds(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt")
    log = surgeon(*COMPARE, "plain,drop").err
    for number, arm in enumerate(("plain", "drop"), start=1):
        title = f"run {number} of 2: {arm}, seed 0, lr 0.001"
        run = log.partition(f"{title}\n")[2].partition(f"{title}:")
        steps, stages = (
            re.findall(pattern, run[0], re.MULTILINE) for pattern in (r"^  epoch \d.*$", r"^  (.*) \(\S+ s\)$")
        )
        assert len(steps) == 3
        assert stages == ["trained", "computed the metrics on the test split", "compared with the original"]
        assert re.match(r" validation mse \S+ in \d+\.\d s", run[2])


def test_an_untrained_folder_gives_its_branches_and_a_run_does_not(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt", "--init-scale", "1")
    defined = surgeon("strip", "net-relaxed", "--json").data["certificate"]["sites"]
    assert branch_norms(surgeon, "net-relaxed") == pytest.approx([site["norm"] for site in defined])
    assert min(site["norm"] for site in defined) > 0.1
    surgeon("finetune", "net-relaxed", "--epochs", "1", "--lr", "1e-2")
    assert max(branch_norms(surgeon, "net-run")) < 1e-20


def test_weights_are_never_kept_in_a_folder_that_is_of_no_comparison(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    before = files_in(Path("net-relaxed"))
    for flags in ((), ("--force",), ("--restart",)):
        told = surgeon("finetune", "net-relaxed", *COMPARE[2:], "plain", "-o", "net-relaxed.json", *flags, code=2).err
        assert "exists already and is of no comparison: name the record otherwise with -o" in told
    assert files_in(Path("net-relaxed")) == before
    assert not Path("net-relaxed.json").exists()


def test_the_seed_shifts_the_seeds(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    command = ("finetune", "net-relaxed", "--epochs", "1", "--compare", "plain")
    record = surgeon(*command, "--seeds", "2", "--seed", "5", "--json").data
    both = record["runs"]
    assert [run["seed"] for run in both] == [5, 6]
    assert record["command"] == ["surgeon", *command, "--seeds", "2", "--seed", "5", "--json"]
    (shifted,) = surgeon(*command, "--seeds", "1", "--seed", "6", "-o", "one.json", "--json").data["runs"]
    assert shifted["test"] == both[1]["test"] != both[0]["test"]


@pytest.mark.parametrize(("what", "words"), [("stop once", "interrupted"), ("nan", "the task loss became nan")])
def test_a_run_that_fails_leaves_the_finished_ones(surgeon: Surgeon, what: str, words: str) -> None:
    surgeon.once("relax", "net.pt")
    told = surgeon(*COMPARE, "plain,drop", *trouble(what, 6), code=2).err
    assert words in told
    assert "1 finished runs are kept in net-compare.runs/, the same command goes on" in told
    record = strict(RECORD.read_text())
    assert record["complete"] is False
    assert [(run["arm"], run["steps"]) for run in record["runs"]] == [("plain", 3)]
    assert [row["arm"] for row in record["rows"]] == ["plain"]
    surgeon(*COMPARE, "plain,drop", "--restart")
    record = strict(RECORD.read_text())
    assert (record["complete"], len(record["runs"])) == (True, 2)


SWEPT = (*COMPARE, "plain,drop", "--lr-grid", "1e-2,1e-3")


def without_times(record: Any) -> Any:
    """Leave out of a record what differs between equal runs: times, and the name of the output."""
    if isinstance(record, dict):
        return {name: without_times(part) for name, part in record.items() if name not in ("seconds", "command")}
    return [without_times(part) for part in record] if isinstance(record, list) else record


@pytest.mark.parametrize(("grid", "at"), [("1e-2,1e-3", 6), ("1e-2", 11)], ids=["in the sweep", "in the final runs"])
def test_the_same_command_goes_on(surgeon: Surgeon, grid: str, at: int) -> None:
    surgeon.once("relax", "net.pt")
    command = (*COMPARE, "plain,drop", "--lr-grid", grid, *trouble("stop once", at))
    assert "the same command goes on" in surgeon(*command, code=2).err
    stored = files_in(Path("net-compare.runs"))
    told = surgeon(*command).err
    assert f"going on: {len(stored) - 1} finished runs" in told
    assert stored.items() <= files_in(Path("net-compare.runs")).items()
    surgeon(*command, "-o", "whole.json")
    assert without_times(strict(RECORD.read_text())) == without_times(strict(Path("whole.json").read_text()))


def test_a_killed_comparison_goes_on(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    command = (*COMPARE, "plain,drop", *trouble("KILL", 6))
    assert forked(surgeon.path, *command).returncode == -signal.SIGKILL
    stored = files_in(Path("net-compare.runs"))
    assert set(stored) == {"comparison.json", "run-plain-lr0.001-seed0.json"}
    surgeon(*command)
    assert stored.items() <= files_in(Path("net-compare.runs")).items()
    surgeon(*command, "-o", "whole.json")
    assert without_times(strict(RECORD.read_text())) == without_times(strict(Path("whole.json").read_text()))


def test_more_arms_and_seeds_extend_a_comparison(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain")
    stored = files_in(Path("net-compare.runs"))
    more = ("finetune", "net-relaxed", "--epochs", "1", "--seeds", "2", "--compare", "plain,drop")
    surgeon(*more)
    assert stored.items() <= files_in(Path("net-compare.runs")).items()
    assert len(strict(RECORD.read_text())["runs"]) == 4
    monkeypatch.setattr(sys.modules["surgeon.training.comparison"], "run_one", None)  # nothing is left to do
    surgeon(*more)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--branch-factor", "0.5"), "settings.branch_factor .0.1 there, 0.5 here"),
        (("--epochs", "2"), "settings.epochs .1 there, 2 here"),
        (("--task", "task.py", "--task-args", '{"batches": 2}'), "task.arguments.batches .null there, 2 here"),
    ],
)
def test_another_comparison_in_the_same_place_is_refused(surgeon: Surgeon, change: tuple[str, ...], words: str) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain")
    before = files_in(surgeon.path)
    told = surgeon(*COMPARE, "plain", *change, code=2).err
    assert re.search(words, told), told
    assert "start anew with `--restart`" in told
    assert "differs in" in surgeon(*COMPARE, "plain", *change, "--force", code=2).err
    assert files_in(surgeon.path) == before
    surgeon(*COMPARE, "plain", *change, "--restart")
    assert files_in(surgeon.path) != before


def test_another_checkpoint_plan_or_task_is_refused(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain")
    surgeon("relax", "net.pt", "--include", "first*", "--force")
    assert "differs in plan.sites (2 there, 1 here)" in surgeon(*COMPARE, "plain", code=2).err
    torch.save(Net().state_dict(), "net.pt")
    surgeon("relax", "net.pt", "--force")
    assert "differs in checkpoint sha256" in surgeon(*COMPARE, "plain", code=2).err
    Path("task.py").write_text(Path("task.py").read_text() + "\n")
    assert "task.sha256" in surgeon(*COMPARE, "plain", "--accept-changed-task", code=2).err


def test_runs_of_other_versions_are_not_mixed_in(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain")
    description = Path("net-compare.runs/comparison.json")
    identity = json.loads(description.read_text())
    assert identity["versions"].keys() == {"python", "equisurgeon", "torch", "e3nn"}
    identity["versions"]["e3nn"] = "0.1.0"
    description.write_text(json.dumps(identity))
    assert 'differs in versions.e3nn ("0.1.0" there, ' in surgeon(*COMPARE, "plain", code=2).err
    surgeon(*COMPARE, "plain", "--restart")


def test_only_restart_deletes_finished_runs(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain")
    runs, drawn = Path("net-compare.runs"), []
    stored, module = files_in(runs), sys.modules["surgeon.training.comparison"]
    usual = module.run_one  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "run_one", lambda *given: drawn.append(given) or usual(*given))
    assert "going on: 1 finished runs" in surgeon(*COMPARE, "plain", "--force").err
    assert (len(drawn), files_in(runs)) == (0, stored)
    assert "going on" not in surgeon(*COMPARE, "plain", "--restart").err
    assert len(drawn) == 1
    assert files_in(runs).keys() == stored.keys()


def test_what_is_no_comparison_is_kept(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    RECORD.write_text("{}")
    assert "overwrite it with `--force`" in surgeon(*COMPARE, "plain", code=2).err
    notes = Path("net-compare.runs/notes.txt")
    notes.parent.mkdir()
    notes.write_text("mine")
    assert "got a folder without comparison.json" in surgeon(*COMPARE, "plain", "--force", code=2).err
    assert (notes.read_text(), RECORD.read_text()) == ("mine", "{}")
    notes.unlink()
    surgeon(*COMPARE, "plain", "--force")
    assert strict(RECORD.read_text())["complete"] is True


def test_a_damaged_run_is_repeated(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain,drop")
    record, path = strict(RECORD.read_text()), Path("net-compare.runs/run-drop-lr0.001-seed0.json")
    for damaged in ("", "{}", '{"point": 1}', path.read_text()[:100]):
        path.write_text(damaged)
        told = surgeon(*COMPARE, "plain,drop").err
        assert f"1 stored runs are damaged, or of another version, and will be repeated: {path.name}" in told
        assert without_times(strict(RECORD.read_text())) == without_times(record)


def test_a_damaged_description_is_refused(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*COMPARE, "plain")
    Path("net-compare.runs/comparison.json").write_text("{")
    assert "expected the description of a comparison in" in surgeon(*COMPARE, "plain", code=2).err


def test_a_sweep_goes_on_beyond_the_edge_of_the_grid(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    told = surgeon(*COMPARE, "plain", "--lr-grid", "1e-4,2e-4").out
    assert "warning: the best learning rate of plain" in told
    assert "highest of the 6 tried" in told
    assert "1 runs: 1 arms, 1 seeds, 3 optimiser steps each" in told
    record = strict(RECORD.read_text())
    assert record["sweep"]["further"] == {"plain": [4e-4, 8e-4, 1.6e-3, 3.2e-3]}
    assert [run["learning_rate"] for run in record["runs"]] == [3.2e-3]


def test_arms_with_optimisers_are_compared_kept_and_stripped(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    arms = "plain,plain@adamw+beta2=0.9,drop@soap"
    told = surgeon(*COMPARE, arms, "--seeds", "2", "--lr", "1e-2").out
    assert "differences from plain paired by seed" in told
    assert "drop@soap: mse" in told
    record = strict(RECORD.read_text())
    assert [row["arm"] for row in record["rows"]] == arms.split(",")
    assert {row["reference"] for row in record["rows"]} == {"plain"}
    kept = {arm: seeds[0] for arm, seeds in record["kept weights"].items()}
    surgeon("strip", f"net-compare/drop@soap/{kept['drop@soap']}", "-o", "clean")
    assert Path("clean/certificate.json").is_file()
    again = surgeon(*COMPARE, f"{arms},plain@sgd", "--seeds", "2", "--lr", "1e-2").err
    assert "going on: 6 finished runs" in again
    assert "optimizer among adamw" in surgeon(*COMPARE, "plain@adamv", code=2).err


@pytest.mark.slow
def test_processes_give_the_same_record(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    swept = (*COMPARE, "drop", "--lr-grid", "1e-3,1e-2,1e30")  # the best one in the middle: the grid is not extended
    told = surgeon(*swept, "--jobs", "2").err
    assert "sweep 3 of 3" in told
    assert "run 1 of 1" in told
    diverged = [run for run in strict(RECORD.read_text())["sweep"]["runs"] if run["validation"] == [None]]
    assert [run["learning_rate"] for run in diverged] == [1e30]
    surgeon(*swept, "-o", "one.json")
    assert without_times(strict(RECORD.read_text())) == without_times(strict(Path("one.json").read_text()))


@pytest.mark.slow
def test_what_is_raised_in_a_process_is_told(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    told = surgeon(*COMPARE, "plain", "--jobs", "2", *trouble("raise", 2), code=2).err
    assert "ZeroDivisionError" in told


def test_work_needs_nothing_but_plain_data(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    workspace = open_path("net-relaxed")
    settings = FinetuneSettings(epochs=1)
    source = pickle.loads(pickle.dumps(Recipe.of(workspace, settings)))
    point = Point("drop", 0, 1e-2)
    _, here = outcome_of(comparison_of(workspace, settings), point)
    _, there = work(source, point, torch.get_num_threads())
    assert without_times(dataclasses.asdict(here)) == without_times(dataclasses.asdict(there))
    assert there != work(source, Point("drop", 1, 1e-2), torch.get_num_threads())[1]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_command_says_how_to_get_it(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    assert "pip install 'equisurgeon[ray]'" in surgeon(*COMPARE, "plain", "--ray", "local", code=2).err
    assert "either --jobs or --ray" in surgeon(*COMPARE, "plain", "--ray", "local", "--jobs", "2", code=2).err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_cluster_gives_the_same_record(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon(*SWEPT, "--ray", "local")
    surgeon(*SWEPT, "-o", "one.json")
    assert without_times(strict(RECORD.read_text())) == without_times(strict(Path("one.json").read_text()))


def test_without_a_finished_run_nothing_is_written(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    before = files_in(surgeon.path)
    told = surgeon(*COMPARE, "plain,drop", *trouble("stop once", 2), code=2).err
    assert "no run was finished, nothing was written" in told
    assert files_in(surgeon.path).keys() - before.keys() == {"stopped"}


def test_a_finished_sweep_is_kept_as_well(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    told = surgeon(*COMPARE, "plain", "--lr-grid", "1e-2", *trouble("stop once", 6), code=2).err
    assert "1 finished runs are kept in net-compare.runs/" in told
    record = strict(RECORD.read_text())
    assert (record["complete"], record["runs"]) == (False, [])
    surgeon(*COMPARE, "plain", "--lr-record", str(RECORD), "-o", "after.json")
    assert strict(Path("after.json").read_text())["runs"][0]["learning_rate"] == record["sweep"]["best"]["plain"]


def test_one_seed_has_no_interval_and_its_record_no_nan(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
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


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_of_long_names_is_cut_between_words(width: int) -> None:
    names, told = ("plain@adamw+beta2=0.95", "plain@soap"), io.StringIO()
    numbers = {"learning_rate": 3e-3, "mean": 0.0104061, "spread": 4.1e-4, "difference": -1.2e-3, "half_width": 2.1e-3}
    found = {"reference": names[0], "seconds": 123.4, "equivariance": "4.6e-15", "certificate": "5 of 5 same graph"}
    table = comparison_table([{"arm": name, **numbers, **found} for name in names], "forces_rmse", 5)
    fit(table, width)
    Console(file=told, width=width).print(table)
    lines = told.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in re.split(r"[\s│┃;]+", line)}
    assert words >= {"plain@adamw", "+beta2=0.95", "plain@adamw+beta2=0.95", "plain@soap", "0.003", "4.6e-15"}
    assert words >= {"arm", "lr", "forces_rmse", "difference", "seconds", "equiv.", "error", "same", "graph"}


def test_what_is_left_is_said_while_something_is(capsys: pytest.CaptureFixture[str]) -> None:
    bar = TrainingBar(None)
    bar.begin("sweep", "mse", 2)
    for rate in (1e-3, 1e-2):
        bar.finish(Point("plain", 0, rate, test=False), Failure("diverged"))
    first, last = capsys.readouterr().err.splitlines()
    assert "s left" in first
    assert last.endswith("lr 0.01: diverged")


def test_a_comparison_that_ends_between_weights_and_their_run_goes_on(
    surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch
) -> None:
    surgeon.once("relax", "net.pt")
    usual = RunStore.__setitem__

    def full(store: RunStore, point: Point, outcome: Outcome) -> None:
        raise WriteError("the disk is full")

    monkeypatch.setattr(RunStore, "__setitem__", full)
    surgeon("finetune", "net-relaxed", *COMPARE[2:], "plain", code=2)
    assert Path("net-compare/plain/0/model.safetensors").is_file()
    monkeypatch.setattr(RunStore, "__setitem__", usual)
    surgeon("finetune", "net-relaxed", *COMPARE[2:], "plain")
    assert Path("net-compare.json").is_file()
