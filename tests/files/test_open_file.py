"""A checkpoint that is cut off, written to or replaced while it is read: old bytes with their hash, or one sentence."""

from __future__ import annotations

import os
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from surgeon.errors import CheckpointError, SurgeonError
from surgeon.export.container import write_container
from surgeon.files import archives, reading
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.content import read_json, sha256_of_file
from surgeon.files.open_file import OpenFile
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed
from surgeon.files.tensors import write_tensors
from surgeon.opening.loading import load_into
from surgeon.opening.models import find_model
from surgeon.opening.options import OpenOptions
from tests.campaigns.work import surgeon as command

WIDTH = 600  # more than a page of a mapped file
FORMATS = ["net.safetensors", "net.pt"]


def write(path: Path, value: float) -> Path:
    """Write a checkpoint of equal weights, long ago: clocks of file systems are coarse."""
    tensors = {"weight": torch.full((WIDTH, WIDTH), value), "bias": torch.full((WIDTH,), value)}
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        write_tensors(path, tensors)
    os.utime(path, (1e9, 1e9))
    return path


def load(checkpoint: Checkpoint) -> None:
    load_into(nn.Linear(WIDTH, WIDTH), checkpoint.tensors, "the file")


def look(checkpoint: Checkpoint) -> None:
    assert float(checkpoint.tensors["weight"].sum()) == WIDTH * WIDTH


def survives(work: Callable[[], None]) -> bool:
    """Tell whether work ends well in a process of its own, which a mapped file would kill."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the others did not come along
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("use", [load, look])
def test_a_file_that_is_cut_off_after_opening(tmp_path: Path, use: Callable[[Checkpoint], None], name: str) -> None:
    def work() -> None:
        checkpoint = open_checkpoint(write(tmp_path / name, 1.0))
        os.truncate(checkpoint.path, 1000)
        with pytest.raises(CheckpointError, match="has changed while it was read"):
            use(checkpoint)

    assert survives(work)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("use", [load, look])
def test_a_file_that_is_written_to_after_opening(tmp_path: Path, use: Callable[[Checkpoint], None], name: str) -> None:
    checkpoint = open_checkpoint(write(tmp_path / name, 1.0))
    with open(checkpoint.path, "r+b") as handle:
        handle.seek(-4, os.SEEK_END)
        handle.write(b"1234")
    with pytest.raises(CheckpointError, match=r"changed while it was read \(it was written to\)"):
        use(checkpoint)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("use", [load, look])
def test_a_file_that_is_replaced_after_opening(tmp_path: Path, use: Callable[[Checkpoint], None], name: str) -> None:
    path = write(tmp_path / name, 1.0)
    before, checkpoint = sha256_of_file(path), open_checkpoint(path)
    write(tmp_path / f"new-{name}", 2.0).replace(path)
    use(checkpoint)
    assert checkpoint.sha256 == before != sha256_of_file(path)


@pytest.mark.parametrize("name", FORMATS)
def test_neither_values_nor_the_hash_are_read_before_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def sound(archive: object, record: str) -> bool:
        return "/data/" not in record or pytest.fail(f"{record} was read")

    monkeypatch.setattr(OpenFile, "sha256", lambda source: pytest.fail("all of the file was read"))
    monkeypatch.setattr(archives, "_record_is_sound", sound)
    path = write(tmp_path / name, 1.0)
    with pytest.raises(CheckpointError, match=r"weight is \(600, 600\) in the file and \(1, 600\) in the model"):
        find_model(open_checkpoint(path), OpenOptions(build=lambda: nn.Linear(WIDTH, 1)))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 5000), os.utime])
def test_a_file_that_changes_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Path], None]
) -> None:
    path = write(tmp_path / name, 1.0)
    monkeypatch.setattr(reading, "_prefix_of", lambda names: change(path) or "")
    with pytest.raises(CheckpointError, match="has changed while it was read"):
        open_checkpoint(path)


def test_a_library_that_fails_on_a_file_which_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "net.pt", 1.0)

    def opened(*given: object) -> None:
        os.truncate(path, 5000)
        raise zipfile.BadZipFile("File is not a zip file")

    monkeypatch.setattr(reading, "_open_by_library", opened)
    with pytest.raises(CheckpointError, match="has changed while it was read"):
        open_checkpoint(path)


def test_a_file_that_is_cut_off_while_torch_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain = tmp_path / "net.pt", torch.load
    torch.save({"weight": torch.ones(WIDTH, WIDTH)}, path, _use_new_zipfile_serialization=False)

    def cut(*given: object, **options: object) -> object:
        os.truncate(path, 5000)
        return plain(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "load", cut)
    with pytest.raises(CheckpointError, match="has changed while it was read"):
        open_checkpoint(path)


def test_a_file_that_a_library_opens_must_keep_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_library(path: Path, trust_pickle: bool) -> Checkpoint:
        write(tmp_path / "new.pt", 2.0).replace(path)
        return Checkpoint(path, {"a": torch.ones(1)}, "nested", library="somebody's")

    monkeypatch.setattr(reading, "_open_by_library", by_library)
    with pytest.raises(CheckpointError, match="another file has its name"):
        open_checkpoint(write(tmp_path / "net.pt", 1.0))


def test_a_package_whose_code_is_run_again_must_be_the_one_that_was_opened(tmp_path: Path) -> None:
    opened = Checkpoint(write(tmp_path / "net.pt", 1.0), {}, "module", hashed=lambda: "0" * 64, library="nequip")
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        write_container(opened, {}, tmp_path / "new.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize(
    "read",
    [open_checkpoint, sha256_of_file, read_json, lambda path: read_relaxed(path.parent)],
    ids=["weights", "hash", "json", "folder"],
)
def test_what_would_never_end_is_no_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A pipe into which nobody writes would let its reader wait for ever."""
    for name in ("surgeon_config.json", "model.safetensors", "relaxation.safetensors"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(SurgeonError, match="is a pipe or a device"):
        read(tmp_path / "surgeon_config.json")


@pytest.mark.parametrize("name", FORMATS)
def test_forms_need_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names, shapes and dtypes come from the header, whoever asks for them, and each value is read only when used."""
    asked: list[str] = []
    read = OpenFile.read_into

    def counted(source: OpenFile, buffer: memoryview, start: int, what: str) -> None:
        asked.append(what)
        read(source, buffer, start, what)

    path = write(tmp_path / name, 1.0)
    monkeypatch.setattr(OpenFile, "read_into", counted)
    checkpoint = open_checkpoint(path)
    assert reading.keys_hash(checkpoint.in_file) == reading.keys_hash(nn.Linear(WIDTH, WIDTH).state_dict())
    with pytest.raises(CheckpointError, match="expected the shapes of Linear"):
        load_into(nn.Linear(WIDTH, 2), checkpoint.tensors, "the file")
    assert not any("tensor" in what for what in asked)
    load_into(nn.Linear(WIDTH, WIDTH), checkpoint.tensors, "the file")
    assert sum("tensor" in what for what in asked) == 2 * 2  # copied, then compared


def test_a_link_to_nothing_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "net.pt").symlink_to("gone.pt")
    with pytest.raises(CheckpointError, match=r"is a link to 'gone\.pt', which is not there"):
        open_checkpoint(tmp_path / "net.pt")


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    link = tmp_path / "loop"
    link.symlink_to("loop")
    for arguments in (("finetune", str(link)), ("strip", str(link))):
        code, _, err = command(*arguments)
        assert (code, "unexpected" in err) == (2, False), err
