"""New weights go back into the original container, and everything else of it stays."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, ExistsError, WriteError
from surgeon.export import container as container_module
from surgeon.export.container import write_container
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import write_tensors

TENSORS = {"b.weight": torch.arange(6.0).view(2, 3), "a": torch.ones(2, dtype=torch.bfloat16), "e": torch.zeros(0, 3)}


def opened(folder: Path, content: Any, *, trust: bool = False) -> Checkpoint:
    torch.save(content, folder / "in.pt")
    return open_checkpoint(folder / "in.pt", trust_pickle=trust)


def shifted(tensors: Any) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in tensors.items()}


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in left)


def test_a_state_dict_keeps_order_attributes_and_parameters(tmp_path: Path) -> None:
    content = OrderedDict(TENSORS, p=nn.Parameter(torch.ones(2), requires_grad=False))
    content._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    checkpoint = opened(tmp_path, content)
    write_container(checkpoint, shifted(checkpoint.tensors), tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(written) == list(content)
    assert written._metadata == {"": {"version": 2}}
    assert isinstance(written["p"], nn.Parameter)
    assert not written["p"].requires_grad
    assert same(shifted(content), written)


def test_a_nested_dict_keeps_extras_order_and_prefix(tmp_path: Path) -> None:
    weights = {f"module.{key}": value for key, value in TENSORS.items()}
    checkpoint = opened(tmp_path, {"epoch": 3, "state_dict": weights, "lr": [0.1], "step": torch.tensor(7)})
    write_container(checkpoint, shifted(TENSORS), tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(written) == ["epoch", "state_dict", "lr", "step"]
    assert (written["epoch"], written["lr"], int(written["step"])) == (3, [0.1], 7)
    assert list(written["state_dict"]) == list(weights)
    assert same(shifted(weights), written["state_dict"])
    assert torch.equal(checkpoint.tensors["b.weight"], TENSORS["b.weight"])


def test_safetensors_keep_metadata_and_prefix(tmp_path: Path) -> None:
    write_tensors(tmp_path / "in", {f"_orig_mod.{key}": value for key, value in TENSORS.items()}, {"format": "pt"})
    write_container(open_checkpoint(tmp_path / "in"), shifted(TENSORS), tmp_path / "out")
    written = open_checkpoint(tmp_path / "out")
    assert (written.container, written.prefix, written.metadata) == ("safetensors", "_orig_mod.", {"format": "pt"})
    assert same(shifted(TENSORS), written.tensors)


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"epoch": 1, "model": module}])
def test_a_whole_module_keeps_its_class_and_attributes(tmp_path: Path, wrap: Any) -> None:
    module = nn.Linear(3, 2)
    module.note = "kept"  # type: ignore[assignment]
    checkpoint = opened(tmp_path, wrap(module), trust=True)
    write_container(checkpoint, shifted(checkpoint.tensors), tmp_path / "out.pt")
    again = open_checkpoint(tmp_path / "out.pt", trust_pickle=True)
    assert (again.container, again.entry) == (checkpoint.container, checkpoint.entry)
    assert isinstance(again.module, nn.Linear)
    assert again.module.note == "kept"
    assert same(shifted(module.state_dict()), again.tensors)
    assert same(module.state_dict(), checkpoint.tensors)


def test_ties_stay_and_views_do_not_drag_their_storage_along(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(3)})
    large = torch.arange(100_000.0)
    write_container(checkpoint, {"a": large[:3], "b": large[:3], "c": large[3:6]}, tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert written["a"].data_ptr() == written["b"].data_ptr() != written["c"].data_ptr()
    assert (tmp_path / "out.pt").stat().st_size < 10_000


def test_not_a_number_compares_by_bytes(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"a": torch.full((2,), float("nan"))})
    write_container(checkpoint, dict(checkpoint.tensors), tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt", weights_only=True)["a"].isnan().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("a"), "only the original has a"),
        (lambda t: t.update(x=torch.ones(1)), "only the new weights has x"),
        (lambda t: t.update(a=torch.ones(3)), r"expected a as \(2,\) torch.bfloat16"),
        (lambda t: t.update(a=torch.ones(2)), r"got \(2,\) torch.float32"),
    ],
)
def test_weights_of_another_form_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    checkpoint = opened(tmp_path, TENSORS)
    tensors = dict(TENSORS)
    change(tensors)
    with pytest.raises(CheckpointError, match=words):
        write_container(checkpoint, tensors, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, TENSORS)
    with pytest.raises(ExistsError):
        write_container(checkpoint, TENSORS, tmp_path / "in.pt")
    write_container(checkpoint, shifted(TENSORS), tmp_path / "in.pt", force=True)
    assert same(shifted(TENSORS), open_checkpoint(tmp_path / "in.pt").tensors)


def test_what_does_not_read_back_equal_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = opened(tmp_path, TENSORS)
    honest = container_module.save_content

    def corrupt(content: Any, path: Path) -> None:
        honest({**content, "a": content["a"] * 2}, path)

    monkeypatch.setattr(container_module, "save_content", corrupt)
    with pytest.raises(WriteError, match="read back, 1 tensors differ, first a"):
        write_container(checkpoint, TENSORS, tmp_path / "out.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.pt"]
