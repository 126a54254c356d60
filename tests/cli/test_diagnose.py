"""``surgeon diagnose``: tables, sentences, records, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tests.commands import Surgeon, files_in

TASK = ("--task", "task.py")


def test_a_checkpoint_is_diagnosed_and_nothing_is_written(surgeon: Surgeon) -> None:
    before = files_in(surgeon.path)
    told = surgeon("diagnose", "net.pt", *TASK).out
    for words in ("1 %, second order", "10 %, the loss itself", "along the gradient", "double backward", "converged"):
        assert words in told
    assert files_in(surgeon.path) == before


def test_a_relaxed_folder_gives_the_same_as_its_checkpoint(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    one, other = (surgeon("diagnose", path, "--json").data for path in ("net.pt", "net-relaxed"))
    assert one["curvature"] == other["curvature"]
    surgeon("finetune", "net-relaxed", "--epochs", "1", "--lr", "1e-2")
    assert surgeon("diagnose", "net-run", "--json").data["curvature"] != one["curvature"]
    assert "expected the group O3" in surgeon("diagnose", "net-relaxed", "--group", "SO3", code=2).err


def test_every_site_alone_and_the_record(surgeon: Surgeon) -> None:
    told = surgeon("diagnose", "net.pt", "--per-site", "-o", "diagnosis.json").out
    assert "each op alone" in told
    assert "wrote diagnosis.json" in told
    record = json.loads((surgeon.path / "diagnosis.json").read_text())
    assert len(record["per_site"]) == len(record["sites"]) == 2
    assert record["curvature"]["shares"].keys() == record["per_site"].keys()
    assert {"versions", "machine", "command", "sites", "settings", "verdict", "sentences"} <= record.keys()
    assert "exists already" in surgeon("diagnose", "net.pt", "-o", "diagnosis.json", code=2).err
    result = surgeon("diagnose", "net.pt", "--json", "-o", "diagnosis.json", "--force", "--include", "first")
    assert [site["name"] for site in result.data["sites"]] == ["first"]
    assert result.err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task-args", '{"empty": "train"}'], "no batch in the split 'train'"),
        (["--task-args", '{"empty": "validation"}'], "no batch in the split 'validation'"),
        (["--include", "nothing*"], "nothing*"),
        (["--products", "3"], "at least 10 products"),
        (["-o", "net.pt", "--force"], "apart from the input"),
    ],
)
def test_refusals(surgeon: Surgeon, arguments: list[str], words: str) -> None:
    assert words in surgeon("diagnose", "net.pt", *TASK, *arguments, code=2).err


def test_without_a_task(surgeon: Surgeon) -> None:
    (surgeon.path / "task.py").rename(surgeon.path / "elsewhere.py")
    told = surgeon("diagnose", "net.pt", "--model", "tests.tiny:make_net", code=2).err
    assert "expected a task with data" in told


def test_without_sites(surgeon: Surgeon) -> None:
    assert "at least one site" in surgeon("diagnose", "net.pt", *TASK, "--exclude", "*", code=2).err
