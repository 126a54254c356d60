"""Every container is recognised by content, and opening one runs no code without trust."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, TrustError
from surgeon.files import reading
from surgeon.files.content import sha256_of_file
from surgeon.files.reading import keys_hash, open_checkpoint
from surgeon.files.tensors import StoredTensors, write_tensors

TENSORS = {"lin.weight": torch.arange(6.0).view(2, 3), "lin.bias": torch.ones(2), "empty": torch.zeros(0, 3)}


def saved(folder: Path, content: Any, name: str = "a.pt", zipped: bool = True) -> Path:
    torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)
    return folder / name


def same(left: Any, right: Any) -> bool:
    return set(left) == set(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_has_to_be_read_at_once_fits_into_the_memory(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, TENSORS, zipped=zipped)
    monkeypatch.setattr(reading, "installed", lambda: 100)
    if zipped:
        assert same(open_checkpoint(path).tensors, TENSORS)  # tensor by tensor
        return
    with pytest.raises(CheckpointError, match="tensor by tensor, or fits into the 0 GB of memory.*save its state_dict"):
        open_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".model", ""])
def test_safetensors_under_any_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_tensors(path, TENSORS, {"k": "v"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.container == "safetensors"
    assert same(checkpoint.tensors, TENSORS)
    assert checkpoint.metadata == {"k": "v"}
    assert checkpoint.sha256 == sha256_of_file(path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_keeps_its_order(tmp_path: Path, suffix: str, zipped: bool) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, TENSORS, f"a{suffix}", zipped))
    assert checkpoint.container == "state_dict"
    assert list(checkpoint.tensors) == list(TENSORS)
    assert same(checkpoint.tensors, TENSORS)
    assert not checkpoint.needs_trust


def test_values_of_an_archive_are_read_when_they_are_used(tmp_path: Path) -> None:
    """Unless one is more than a range of bytes: a transposed view, or numbers in the other order of bytes."""
    whole = torch.arange(12.0).reshape(3, 4)
    parts = {"whole": whole, "part": whole[1], "none": whole[:0], "one": torch.tensor(3), "half": whole.half()}
    opened = open_checkpoint(saved(tmp_path, {"model": parts, "step": torch.ones(2)}))
    assert isinstance(opened.tensors, StoredTensors)
    assert same(opened.tensors, parts)
    assert same(opened.content()["model"], parts)
    opened = open_checkpoint(saved(tmp_path, {**parts, "turned": whole.T}))
    assert not isinstance(opened.tensors, StoredTensors)
    assert same(opened.tensors, {**parts, "turned": whole.T})
    swapped = {"byteorder": b"big", "data/0": whole.numpy().byteswap().tobytes()}
    for changed, lazy in (({}, True), (swapped, False)):
        path = saved(tmp_path, {"a": whole, "b": -whole})
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "again.pt", "w") as new:
            for name in reversed(old.namelist()):  # in other places than torch's
                new.writestr(name, changed.get(name.partition("/")[2], old.read(name)))
        opened = open_checkpoint(tmp_path / "again.pt")
        assert isinstance(opened.tensors, StoredTensors) == lazy
        assert torch.equal(opened.tensors["a"], whole)
        assert torch.equal(opened.tensors["b"], -whole) == lazy  # whose numbers were not turned round


def test_an_archive_is_never_taken_for_a_header(tmp_path: Path) -> None:
    """Its first bytes are the length of one, too, but torch opens it as the archive, with what that holds."""
    (tmp_path / "a.model").write_bytes(b"PK\x03\x04\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="as an archive"):
        open_checkpoint(tmp_path / "a.model")


@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "ema", "anything"])
def test_a_nested_dict(tmp_path: Path, entry: str) -> None:
    content = {
        "epoch": 3,
        entry: OrderedDict(TENSORS),
        "optimizer": {"state": {0: {"step": torch.ones(())}}, "lr": 0.1},
    }
    checkpoint = open_checkpoint(saved(tmp_path, content))
    assert (checkpoint.container, checkpoint.entry) == ("nested", entry)
    assert same(checkpoint.tensors, TENSORS)
    assert list(checkpoint.extras) == ["epoch", "optimizer"]


def test_of_several_entries_the_usual_name_wins_and_otherwise_the_user_chooses(tmp_path: Path) -> None:
    statistics = {"mean": torch.ones(1)}
    path = saved(tmp_path, {"statistics": statistics, "model": TENSORS})
    assert open_checkpoint(path).entry == "model"
    assert same(open_checkpoint(path, entry="statistics").tensors, statistics)
    with pytest.raises(CheckpointError, match="entries with weights are statistics, model"):
        open_checkpoint(path, entry="modle")
    path = saved(tmp_path, {"model": TENSORS, "ema": TENSORS, "statistics": statistics})
    with pytest.raises(CheckpointError, match=r"found several \(model, ema, statistics\).*--entry"):
        open_checkpoint(path)


def test_tensors_beside_a_nested_dict_are_extras(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, {"step": torch.tensor(3), "model": TENSORS}))
    assert checkpoint.entry == "model"
    assert list(checkpoint.extras) == ["step"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_a_common_prefix_of_wrappers_is_removed(tmp_path: Path, prefix: str) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, {prefix + key: value for key, value in TENSORS.items()}))
    assert checkpoint.prefix == prefix
    assert list(checkpoint.tensors) == list(TENSORS)


def test_a_prefix_that_is_not_common_stays(tmp_path: Path) -> None:
    content = {"module.a": torch.ones(1), "b": torch.ones(1)}
    checkpoint = open_checkpoint(saved(tmp_path, content))
    assert checkpoint.prefix == ""
    assert list(checkpoint.tensors) == list(content)


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    path = saved(tmp_path, model, "a.model")
    with pytest.raises(TrustError, match="it names torch.nn.modules.container.Sequential.*--trust-pickle"):
        open_checkpoint(path)
    checkpoint = open_checkpoint(path, trust_pickle=True)
    assert checkpoint.container == "module"
    assert isinstance(checkpoint.module, nn.Sequential)
    assert same(checkpoint.tensors, model.state_dict())
    assert checkpoint.needs_trust


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_inside_a_dict_needs_trust(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path, {"epoch": 1, "model": nn.Linear(3, 2)}, zipped=zipped)
    with pytest.raises(TrustError):
        open_checkpoint(path)
    checkpoint = open_checkpoint(path, trust_pickle=True)
    assert (checkpoint.container, checkpoint.entry) == ("nested", "model")
    assert isinstance(checkpoint.module, nn.Linear)


def test_weights_with_pickled_extras_need_trust(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": TENSORS, "path": Path("x")})
    with pytest.raises(TrustError):
        open_checkpoint(path)
    assert same(open_checkpoint(path, trust_pickle=True).tensors, TENSORS)


def test_an_unusual_pickle_protocol_needs_trust(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt", pickle_protocol=4)
    with pytest.raises(TrustError, match="Unsupported operand"):
        open_checkpoint(tmp_path / "a.pt")
    assert same(open_checkpoint(tmp_path / "a.pt", trust_pickle=True).tensors, TENSORS)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("environment", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}])
def test_a_pickle_bomb_goes_off_only_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    target = tmp_path / "went off"
    path = saved(tmp_path, {"model": TENSORS, "bomb": Bomb(target)}, zipped=zipped)
    with pytest.raises(TrustError):
        open_checkpoint(path)
    assert not target.exists()
    open_checkpoint(path, trust_pickle=True)
    assert target.exists()


def test_a_module_of_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "library_gone_soon.py").write_text("import torch\nclass Net(torch.nn.Linear): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import sys

    import library_gone_soon  # type: ignore[import-not-found]

    path = saved(tmp_path, library_gone_soon.Net(2, 2))
    (tmp_path / "library_gone_soon.py").unlink()
    monkeypatch.delitem(sys.modules, "library_gone_soon")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="needs the module 'library_gone_soon'.*install it"):
        open_checkpoint(path, trust_pickle=True)


def test_torchscript_is_named(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, files written by it are not gone
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        open_checkpoint(tmp_path / "a.pt", trust_pickle=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(3), "expected a dict of named tensors in .* got Tensor"),
        ([torch.ones(3)], "got list"),
        ({}, "holds none"),
        ({"epoch": 3}, "holds none"),
        ({0: torch.ones(2)}, "holds none"),
    ],
)
def test_a_file_without_named_tensors(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(saved(tmp_path, content))


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {}, {"k": "v"})
    with pytest.raises(CheckpointError, match="holds none"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    saved(tmp_path, TENSORS, "model.pt")
    with pytest.raises(CheckpointError, match="its folder holds model.pt"):
        open_checkpoint(tmp_path / "modle.pt")
    with pytest.raises(CheckpointError, match="nor a folder"):
        open_checkpoint(tmp_path / "none" / "model.pt")
    with pytest.raises(CheckpointError, match="is a folder: name a file in it, it holds model.pt"):
        open_checkpoint(tmp_path)


def test_keys_hash_sees_names_shapes_and_dtypes_but_not_order_and_values() -> None:
    def changed(**entries: Tensor) -> dict[str, Tensor]:
        return {"a": torch.ones(2, 3), "b": torch.ones(2)} | entries

    reference = keys_hash(changed())
    assert keys_hash(dict(reversed(changed(a=torch.zeros(2, 3)).items()))) == reference
    others = [changed(c=torch.ones(1)), changed(a=torch.ones(3, 2)), changed(b=torch.ones(2).double())]
    assert len({reference, *map(keys_hash, others)}) == 4
