"""``surgeon verify`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.cli.test_strip_recalibration import gather, relaxed, task_options
from tests.commands import Surgeon
from tests.tiny import Net, Plain

VERIFY = ("verify", "net-clean", "--against", "net.pt", "--group", "O3")


@pytest.fixture
def clean(surgeon: Surgeon) -> Surgeon:
    """The command line in a folder with ``net-clean/``."""
    surgeon.once("relax", "net.pt", "--init-scale", "0.5")
    surgeon("strip", "net-relaxed", "--elements", "1", "--batches", "1")
    return surgeon


def test_an_untouched_folder(clean: Surgeon) -> None:
    told = clean(*VERIFY).out
    assert "original, recorded" not in told
    assert "note: it is not signed (--verbose says how)\n" in told
    assert "model_signing" not in told
    told = clean(*VERIFY, "--verbose").out
    assert f"running the task file {clean.path / 'task.py'}" in told
    assert "model_signing sign key" in told
    for words in ("original, recorded", "stripped, now", "everything that was checked holds", "┃ recorded ┃ now"):
        assert words in told
    assert "difference" not in told
    assert " NO " not in told


def test_a_damaged_folder(clean: Surgeon) -> None:
    Path("net-clean/CERTIFICATE.md").write_text("other")
    result = clean(*VERIFY, code=1)
    assert "difference: the file CERTIFICATE.md was changed: its sha256 is" in result.out
    assert "difference: CERTIFICATE.md: expected '# Certificate', found 'other'" in result.out
    assert " NO " in result.out
    assert "everything" not in result.out
    assert "signed" not in result.out
    assert result.err.startswith("error: 'net-clean' is not what its certificate and 'net.pt' say, 2 differences: ")


def test_json_of_both_verdicts(clean: Surgeon) -> None:
    result = clean(*VERIFY, "--json")
    assert result.data["holds"] is True
    assert result.data["differences"] == []
    assert set(result.data["recorded"]) == {"equivariance", "metrics"}
    assert result.err == ""
    Path("net-clean/CERTIFICATE.md").unlink()
    data = json.loads(clean(*VERIFY, "--json", code=1).out)
    assert data["holds"] is False
    assert data["differences"] == ["the file CERTIFICATE.md is missing"]


def test_another_architecture(clean: Surgeon) -> None:
    torch.save(Plain().state_dict(), "other.pt")
    told = clean("verify", "net-clean", "--against", "other.pt", code=1).out
    assert "keys, shapes and dtypes as in the original" in told
    assert "difference: layer.weight: the original has [[3, 6], 'torch.float32'], the result nothing" in told


def test_what_was_not_checked_is_said(clean: Surgeon) -> None:
    Path("task.py").rename("data.py")
    told = clean("verify", "net-clean", "--against", "net.pt").out
    sentence = (
        "not looked at, which `surgeon verify net-clean --against net.pt --task FILE` does: recorded module classes"
    )
    assert sentence in told
    assert "give --task or --model" not in told
    assert "give --task or --model" in clean("verify", "net-clean", "--against", "net.pt", "--verbose").out
    assert "everything that was checked holds; 11 not checked" in told
    assert "not checked" not in clean(*VERIFY, "--task", "data.py", "--strict").out.splitlines()[-1]
    strict = clean("verify", "net-clean", "--against", "net.pt", "--strict", code=1).err
    assert "everything that was checked holds, but 11 not checked" in strict


def test_a_folder_alone(clean: Surgeon) -> None:
    told = clean("verify", "net-clean").out
    assert "which `surgeon verify net-clean --against net.pt --task FILE` does: original checkpoint, " in told
    assert "everything that was checked holds; " in told
    assert "the certificate says 'same function'" in told
    measured = clean("verify", "net-clean", "--task", "task.py", "--group", "O3", "--json").data
    assert measured["against"] is None
    assert set(measured["equivariance"]) == set(measured["metrics"]) == {"stripped"}
    assert clean("verify", "net-clean", "--strict", code=1).err.startswith(
        "error: everything that was checked holds, but"
    )
    Path("net-clean/CERTIFICATE.md").write_text("other")
    assert "'net-clean' is not what its certificate says, 2 differences" in clean("verify", "net-clean", code=1).err


def test_bad_usage(clean: Surgeon) -> None:
    refused = {
        ("--against", "net.pt"): "Missing argument",
        ("nothing", "--against", "net.pt"): "expected a folder written by `surgeon strip`",
        ("net-clean", "--against", "nothing.pt"): "there is no checkpoint 'nothing.pt'",
        ("net-clean", "--against", "net-relaxed"): "is a folder: name a file in it",
        ("net-clean", "--against", "net.pt", "--group", "Q7"): "Q7",
        ("net-clean", "--against", "net.pt", "--task", "no.py"): "there is no task file",
    }
    for arguments, words in refused.items():
        assert words in clean("verify", *arguments, code=2).err


def test_a_pickled_original_needs_trust(surgeon: Surgeon) -> None:
    torch.save(Net(), "net.pt")
    surgeon("relax", "net.pt", "--trust-pickle")
    surgeon("export", "net-relaxed", "--container", "--trust-pickle")
    assert "--trust-pickle" in surgeon(*VERIFY, code=2).err
    assert "everything that was checked holds" in surgeon(*VERIFY, "--trust-pickle").out


def test_an_entry_with_a_prefix_is_remembered(surgeon: Surgeon) -> None:
    weights = {f"module.{key}": value for key, value in torch.load("net.pt").items()}
    torch.save({"raw": weights, "averaged": {key: value * 2 for key, value in weights.items()}}, "net.pt")
    surgeon("relax", "net.pt", "--entry", "averaged")
    surgeon("export", "net-relaxed", "--container")
    assert "everything that was checked holds" in surgeon(*VERIFY).out
    told = surgeon(*VERIFY, "--entry", "raw", code=1).out
    assert "mse of the original on the test split" in told


def test_buffers_that_training_wrote(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    surgeon("strip", "net-relaxed")
    data = json.loads(Path("net-clean/certificate.json").read_text())
    assert data["buffers_written"]["norm.running_mean"] > 0
    assert "everything that was checked holds" in surgeon(*VERIFY, *task_options()).out
    # without a task nobody knows which buffers training writes
    found = surgeon("verify", "net-clean", "--against", "net.pt", "--model", "norm:make_net", "--json").data["findings"]
    assert {"buffers", "recorded graph"} <= {entry["name"] for entry in found if entry["outcome"] == "not checked"}
