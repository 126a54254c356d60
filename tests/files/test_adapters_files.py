"""Files in a form of their own library's, opened and written by an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surgeon.errors import CheckpointError, TrustError, WriteError
from surgeon.export.container import write_container
from surgeon.files.checkpoint import Checkpoint, KeepsFiles
from surgeon.files.reading import open_checkpoint
from surgeon.registry import Adapter


class Halves(Adapter):
    """A library that stores twice the weights, and says how the model is built."""

    name = "halves"

    def open_file(self, path: Path, trust_pickle: bool) -> Checkpoint | None:
        content = torch.load(path, weights_only=True)
        if "doubled" not in content:
            return None
        if content.get("code") and not trust_pickle:
            raise TrustError("it holds code")
        tensors = {key: value / 2 for key, value in content["doubled"].items()}
        statement = json.dumps({"factory": "torch.nn:Linear", "args": {"in_features": 3, "out_features": 2}})
        metadata = {"surgeon.model": statement}
        return Checkpoint(path, tensors, "nested", metadata=metadata, content=lambda: content, library=self.name)

    def write_file(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
        torch.save({**checkpoint.content(), "doubled": {key: 2 * value for key, value in tensors.items()}}, path)


class Forgetful(Halves):
    """One that writes what it has read."""

    def write_file(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
        super().write_file(checkpoint, checkpoint.tensors, path)


def install(monkeypatch: pytest.MonkeyPatch, adapters: Mapping[str, Adapter]) -> None:
    for module in ("files.reading", "export.container"):
        monkeypatch.setattr(f"surgeon.{module}.installed_adapters", lambda: adapters)


@pytest.fixture
def doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch, {"plain": Adapter(), "halves": Halves()})
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save({"doubled": {key: 2 * value for key, value in state.items()}, "epoch": 3}, tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


def test_an_adapter_that_keeps_files_is_recognised() -> None:
    assert isinstance(Halves(), KeepsFiles)
    assert not isinstance(Adapter(), KeepsFiles)


def test_it_opens_and_writes(doubled: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(doubled)
    assert checkpoint.library == "halves"
    assert len(checkpoint.sha256) == 64
    weights = {key: value + 1 for key, value in checkpoint.tensors.items()}
    write_container(checkpoint, weights, tmp_path / "new.ckpt")
    again = open_checkpoint(tmp_path / "new.ckpt")
    assert all(torch.equal(again.tensors[key], value) for key, value in weights.items())
    assert again.content()["epoch"] == 3


def test_other_files_are_opened_as_usual(doubled: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    checkpoint = open_checkpoint(tmp_path / "other.pt")
    assert (checkpoint.library, checkpoint.container) == ("", "state_dict")


def test_its_refusals_are_passed_on(doubled: Path) -> None:
    torch.save({**torch.load(doubled, weights_only=True), "code": True}, doubled)
    with pytest.raises(TrustError, match="it holds code"):
        open_checkpoint(doubled)
    assert open_checkpoint(doubled, trust_pickle=True).library == "halves"


def test_what_it_writes_is_read_back(doubled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(doubled)
    install(monkeypatch, {"halves": Forgetful()})
    with pytest.raises(WriteError, match="2 tensors differ, first weight"):
        write_container(checkpoint, {key: value + 1 for key, value in checkpoint.tensors.items()}, tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


def test_an_adapter_that_is_not_there_any_more(doubled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(doubled)
    install(monkeypatch, {})
    with pytest.raises(CheckpointError, match="adapter 'halves', which opened .* is not installed"):
        write_container(checkpoint, checkpoint.tensors, tmp_path / "a.ckpt")


def test_an_adapter_has_to_give_its_own_name(doubled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"quarters": Halves()})
    with pytest.raises(CheckpointError, match="the adapter quarters opened .* as a file of 'halves'"):
        open_checkpoint(doubled)
