"""Failing disks: one sentence, nothing half-written, nothing existing touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from surgeon.errors import WriteError
from surgeon.export.container import write_container
from surgeon.files.atomic import atomic_folder, check_writable
from surgeon.files.content import write_text
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import write_tensors
from tests.processes import forked_code

WORDS = {
    errno.ENOSPC: "the disk is full",
    errno.EACCES: "permission is denied",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "larger than the system allows",
    errno.ESTALE: "the system says",
}


def failing(number: int) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_failing_call_while_replacing_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    (tmp_path / "out.txt").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.raises(WriteError, match=WORDS[number]) as caught:
            write_text(tmp_path / "out.txt", "new", force=True)
    assert str(tmp_path / "out.txt") in str(caught.value)
    assert "surgeon-tmp" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "old"


@pytest.mark.parametrize("number", WORDS)
def test_a_failing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing(number))
        with pytest.raises(WriteError, match=WORDS[number]):
            write_text(tmp_path / "out.txt", "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing(number))
        with pytest.raises(WriteError, match=WORDS[number]):
            check_writable(tmp_path / "out.txt")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_failing_call_while_writing_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(errno.ENOSPC))
        with (
            pytest.raises(WriteError, match="the disk is full") as caught,
            atomic_folder(tmp_path / "run") as temporary,
        ):
            (temporary / "a.txt").write_text("a")
    assert str(tmp_path / "run") in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_failure_inside_a_folder_names_the_final_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(WriteError) as caught, atomic_folder(tmp_path / "run") as temporary:
            write_text(temporary / "a.txt", "a")
    assert str(tmp_path / "run" / "a.txt") in str(caught.value)
    assert "surgeon-tmp" not in str(caught.value)


LIMITED = """
import resource, sys, torch
from surgeon.files.reading import open_checkpoint
from surgeon.export.container import write_container
from surgeon.errors import WriteError
from surgeon.files.content import write_text
from surgeon.files.tensors import write_tensors
torch.set_num_threads(1)
sys.dont_write_bytecode = True
checkpoint = open_checkpoint(sys.argv[1])
big = torch.ones(100_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
writers = {
    "text": lambda: write_text("out", "x" * 100_000),
    "tensors": lambda: write_tensors("out", {"a": big}),
    "container": lambda: write_container(checkpoint, dict(checkpoint.tensors), "out"),
}
try:
    writers[sys.argv[2]]()
except WriteError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("writer", ["text", "tensors", "container"])
def test_a_file_size_limit_of_the_system(tmp_path: Path, writer: str) -> None:
    torch.save({"a": torch.ones(100_000)}, tmp_path / "in.pt")
    (tmp_path / "work").mkdir()
    result = forked_code(tmp_path / "work", LIMITED, str(tmp_path / "in.pt"), writer)
    assert result.returncode == 1
    assert "larger than the system allows" in result.stderr
    assert "Traceback" not in result.stderr
    assert not any((tmp_path / "work").iterdir())


def test_the_disk_fills_up_while_a_container_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(10)}, tmp_path / "in.pt")
    checkpoint = open_checkpoint(tmp_path / "in.pt")

    def full(content: object, handle: object) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 (as torch's writer does)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match="the disk is full"):
        write_container(checkpoint, dict(checkpoint.tensors), tmp_path / "out.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.pt"]


def test_safetensors_own_error_becomes_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(WriteError, match="the disk is full"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(WriteError, match="permission is denied"):
        write_text(closed / "out.txt", "x")
    with pytest.raises(WriteError, match="permission is denied"):
        check_writable(closed / "out.txt")
    assert not any(closed.iterdir())


def test_an_interrupt_while_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a.safetensors").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, force=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"old"
