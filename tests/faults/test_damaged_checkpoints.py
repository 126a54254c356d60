"""Damaged checkpoints: always a sentence, never a traceback of a library, and never silently wrong weights."""

from __future__ import annotations

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.errors import CheckpointError
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import write_tensors

WEIGHTS = {"a.weight": torch.arange(200.0).view(20, 10), "b": torch.ones(3, dtype=torch.long)}
CONTAINERS = ["safetensors", "state_dict", "legacy", "nested", "module"]


def written(folder: Path, container: str) -> Path:
    path = folder / f"{container}.bin"
    if container == "safetensors":
        write_tensors(path, WEIGHTS)
        return path
    module = nn.Linear(10, 20)
    contents: dict[str, Any] = {"nested": {"epoch": 1, "state_dict": WEIGHTS}, "module": module}
    torch.save(contents.get(container, WEIGHTS), path, _use_new_zipfile_serialization=container != "legacy")
    return path


def check_sentence(error: BaseException, path: Path) -> None:
    text = str(error)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 700


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("trust", [False, True])
def test_every_truncation_is_noticed(tmp_path: Path, container: str, trust: bool) -> None:
    path = written(tmp_path, container)
    data = path.read_bytes()
    lengths = {0, 1, 2, 7, 8, 9, 12, 64, 100, len(data) // 4, len(data) // 2, len(data) - 30, len(data) - 1}
    for length in sorted(lengths):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path, trust_pickle=trust)
        check_sentence(caught.value, path)
        assert container == "module" or "--trust-pickle" not in str(caught.value)


@pytest.mark.parametrize("container", ["state_dict", "nested"])
def test_every_flipped_bit_of_a_zip_container_is_noticed_or_harmless(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    data, noticed = path.read_bytes(), 0
    generator = random.Random(0)
    for position in generator.sample(range(len(data)), 150):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            tensors = dict(open_checkpoint(path).tensors)
        except CheckpointError as error:
            check_sentence(error, path)
            noticed += 1
        else:
            assert all(torch.equal(tensors[key], WEIGHTS[key]) for key in WEIGHTS)
    assert noticed > 50


@pytest.mark.parametrize("container", ["safetensors", "legacy"])
def test_a_flipped_bit_in_a_container_without_checksums_never_crashes(tmp_path: Path, container: str) -> None:
    path = written(tmp_path, container)
    data, noticed = path.read_bytes(), 0
    generator = random.Random(1)
    for position in generator.sample(range(min(len(data), 600)), 150):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            check_sentence(error, path)
            noticed += 1
    assert noticed > 20


def test_flipped_weights_are_what_torch_alone_would_return(tmp_path: Path) -> None:
    path = written(tmp_path, "state_dict")
    data = bytearray(path.read_bytes())
    data[data.find(WEIGHTS["a.weight"].numpy().tobytes()) + 400] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["a.weight"], WEIGHTS["a.weight"])
    with pytest.raises(CheckpointError, match="the checksum of .*data/0.* is wrong"):
        dict(open_checkpoint(path).tensors)


def test_an_archive_that_was_written_without_checksums_opens(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, "state_dict")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(open_checkpoint(path).tensors["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "starts with b'<!DOCTYPE html><'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        (b"\xff" * 8 + b"{" + b"x" * 100, "as safetensors"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}" + b" " * 14 + b"xx", "as safetensors"),
        (b"\x80\x02}q\x00.", "another pickle, as of pickle.dump or joblib, or damaged"),
        (b"PK\x03\x04" + b"\x00" * 100, "as an archive"),
        (bytes(range(256)) * 4, "damaged or not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(tmp_path / "a.pt", trust_pickle=True)
    check_sentence(caught.value, tmp_path / "a.pt")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_is_called_one_and_not_opened(tmp_path: Path, protocol: int, trust: bool) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weights": WEIGHTS}, protocol))
    with pytest.raises(CheckpointError, match="another pickle, as of pickle.dump or joblib") as caught:
        open_checkpoint(tmp_path / "a.pt", trust_pickle=trust)
    check_sentence(caught.value, tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", [2, 3])
def test_files_of_old_torch_are_no_plain_pickles(tmp_path: Path, protocol: int) -> None:
    torch.save(WEIGHTS, tmp_path / "a.pt", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert torch.equal(open_checkpoint(tmp_path / "a.pt").tensors["a.weight"], WEIGHTS["a.weight"])


def test_an_archive_that_would_grow_when_it_is_opened_is_refused(tmp_path: Path) -> None:
    usual = written(tmp_path, "state_dict")
    with zipfile.ZipFile(usual) as read, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in read.namelist():
            packed.writestr(name, bytes(10**8) if name.endswith("data/0") else read.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="is compressed: write it again") as caught:
        open_checkpoint(tmp_path / "bomb.pt", trust_pickle=True)
    check_sentence(caught.value, tmp_path / "bomb.pt")
