"""What a terminal can do, Python can: a command's function writes the same files and refuses with the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surgeon as engine
from surgeon.errors import SurgeonError
from surgeon.files.content import json_compatible
from surgeon.files.outputs import writing_alone
from tests.commands import QUICK, Surgeon, files_in

TASK = engine.OpenOptions(task="task.py")
ONE_EPOCH = engine.FinetuneSettings(epochs=1)
QUICKLY = engine.MeasureSettings(1, 1)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(SurgeonError) as refused:
        call()
    return str(refused.value)


def test_relax(surgeon: Surgeon) -> None:
    surgeon("relax", "net.pt", "--task", "task.py", "--exclude", "second*", "-o", "told")
    engine.relax_checkpoint("net.pt", "called", engine.RelaxSettings(exclude=["second*"]), options=TASK)
    assert files_in(Path("called")) == files_in(Path("told"))
    before = files_in(surgeon.path)
    again = surgeon("relax", "net.pt", "-o", "told", code=2).err
    assert refusal(lambda: engine.relax_checkpoint("net.pt", "told")) in again
    dry = engine.relax_checkpoint("net.pt", None, options=TASK)
    assert dry.folder is None
    assert len(dry.plan.sites) == 2
    assert files_in(surgeon.path) == before


def test_finetune(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    told = surgeon("finetune", "net-relaxed", "--epochs", "1", "-o", "told", "--json").data
    called = engine.finetune("net-relaxed", "called", ONE_EPOCH)
    assert called.result.validation == told["validation"]
    for name in ("model.safetensors", "relaxation.safetensors"):
        assert files_in(Path("called"))[name] == files_in(Path("told"))[name]
    other = surgeon("finetune", "net-relaxed", "--epochs", "2", "-o", "told", code=2).err
    assert refusal(lambda: engine.finetune("net-relaxed", "told", engine.FinetuneSettings(epochs=2))) in other


def test_compare(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    command = ("finetune", "net-relaxed", "--epochs", "1", "--seeds", "1", "--compare")
    told = surgeon(*command, "plain,drop", "-o", "told.json", "--json").data
    settings = engine.CompareSettings(["plain", "drop"], 1, ONE_EPOCH)
    called = json_compatible(engine.compare("net-relaxed", "called.json", settings).to_data())
    assert [run["test"] for run in called["runs"]] == [run["test"] for run in told["runs"]]
    assert Path("called.json").is_file()
    assert files_in(Path("called.runs")).keys() == files_in(Path("told.runs")).keys()
    other = surgeon(*command, "plain", "--branch-factor", "0.5", "-o", "told.json", code=2).err
    changed = engine.CompareSettings(["plain"], 1, engine.FinetuneSettings(epochs=1, branch_factor=0.5))
    assert refusal(lambda: engine.compare("net-relaxed", "told.json", changed)) in other


def test_strip(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    surgeon("export", "net-relaxed", *QUICK, "--container", "-o", "told")
    settings = engine.StripSettings(measure=QUICKLY, container=True)
    called = engine.strip_folder("net-relaxed", "called", settings)
    assert files_in(Path("called")) == files_in(Path("told"))
    assert sorted(called.files) == sorted(files_in(Path("called")))
    assert engine.verify_clean("called", "net.pt").holds
    plain = surgeon("strip", "net.pt", code=2).err
    assert refusal(lambda: engine.strip_folder("net.pt", "net-clean")) in plain


def test_inspect_and_measure(surgeon: Surgeon) -> None:
    inspected = engine.inspect("net.pt", "O3", options=TASK)
    assert surgeon("inspect", "net.pt", "--json").data["plan"] == json_compatible(inspected.plan.to_data())
    assert not engine.inspect_breaks("net.pt", "O3", options=TASK).broken
    measured = json_compatible(engine.measure("net.pt", QUICKLY, group="O3").to_data())
    assert surgeon("measure", "net.pt", *QUICK, "--json").data == measured
    without = surgeon("measure", "net.pt", "--group", "O9", code=2).err
    assert refusal(lambda: engine.measure("net.pt", group="O9")) in without


@pytest.mark.parametrize("command", ["relax", "strip"])
def test_what_another_process_is_writing_is_refused(surgeon: Surgeon, command: str) -> None:
    surgeon.once("relax", "net.pt")
    path, target = {"relax": ("net.pt", "other"), "strip": ("net-relaxed", "net-clean")}[command]
    with writing_alone(target):
        told = surgeon(command, path, "-o", target, code=2).err
    assert "is being written by" in told
    assert not Path(target).exists()
    surgeon(command, path, "-o", target)
