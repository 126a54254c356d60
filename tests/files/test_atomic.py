"""Outputs exist completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
import torch

from surgeon.errors import CheckpointError, ExistsError, HubError, WriteError
from surgeon.files import atomic as files
from surgeon.files.atomic import atomic_file, atomic_folder, check_writable
from surgeon.files.content import sha256_of_file, write_json, write_text
from surgeon.files.tensors import independent_tensors, write_tensors
from tests.commands import dead_pid


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_file_appears_only_at_the_end(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "out.txt").exists()
    assert (tmp_path / "out.txt").read_text() == "new"
    assert names_in(tmp_path) == ["out.txt"]


def test_mode_bits_are_those_of_a_normal_new_file(tmp_path: Path) -> None:
    (tmp_path / "normal").write_text("")
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("normal", "a.safetensors")]
    assert modes[0] == modes[1]


def test_an_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    entered = False
    with pytest.raises(ExistsError, match="--force"), atomic_file(tmp_path / "out.txt"):
        entered = True
    assert not entered
    assert (tmp_path / "out.txt").read_text() == "old"


def test_what_the_hub_says_is_not_about_writing(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="^no such repository$"), atomic_folder(tmp_path / "folder"):
        raise HubError("no such repository")


def test_force_replaces(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    write_text(tmp_path / "out.txt", "new", force=True)
    assert (tmp_path / "out.txt").read_text() == "new"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "out.txt") as temporary:
            temporary.write_text("mine")
            (tmp_path / "out.txt").write_text("theirs")

    with pytest.raises(ExistsError):
        write()
    assert (tmp_path / "out.txt").read_text() == "theirs"
    assert names_in(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_any_exception_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "out.txt").write_text("old")

    def write_file() -> None:
        with atomic_file(tmp_path / "out.txt", force=True) as temporary:
            temporary.write_text("half")
            raise error

    def write_folder() -> None:
        with atomic_folder(tmp_path / "run") as temporary:
            (temporary / "half").write_text("half")
            raise error

    for write in (write_file, write_folder):
        with pytest.raises(type(error)):
            write()
    assert names_in(tmp_path) == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "old"


def test_errors_of_other_files_are_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "out.txt"):
        open(tmp_path / "elsewhere" / "input.txt")  # noqa: SIM115 (fails)
    assert not isinstance(caught.value, WriteError)


def test_a_missing_parent_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="folder does not exist: create it"):
        write_text(tmp_path / "none" / "out.txt", "x")
    with pytest.raises(WriteError, match="folder does not exist: create it"):
        check_writable(tmp_path / "none" / "out.txt")


def test_a_file_as_parent_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="a part of the path is a file"):
        write_text(tmp_path / "file" / "out.txt", "x")


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match="a folder of that name is in the way"):
        write_text(tmp_path / "out", "x", force=True)
    assert names_in(tmp_path) == ["out"]


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with (
        pytest.raises(WriteError, match="a file of that name is in the way"),
        atomic_folder(tmp_path / "out", force=True),
    ):
        pass
    assert (tmp_path / "out").read_text() == "old"


def test_a_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run") as temporary:
        write_text(temporary / "a.txt", "a")
        (temporary / "deep").mkdir()
        write_text(temporary / "deep" / "b.txt", "b")
        assert not (tmp_path / "run").exists()
    assert names_in(tmp_path) == ["run"]
    assert names_in(tmp_path / "run") == ["a.txt", "deep"]


def test_an_empty_folder_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with atomic_folder(tmp_path / "run") as temporary:
        write_text(temporary / "a.txt", "a")
    assert names_in(tmp_path / "run") == ["a.txt"]


def test_a_full_folder_needs_force_and_is_then_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")
    with pytest.raises(ExistsError, match="--force"), atomic_folder(tmp_path / "run"):
        pass
    with atomic_folder(tmp_path / "run", force=True) as temporary:
        write_text(temporary / "new.txt", "new")
    assert names_in(tmp_path) == ["run"]
    assert names_in(tmp_path / "run") == ["new.txt"]


def test_a_failed_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def write() -> None:
        with atomic_folder(tmp_path / "run", force=True) as temporary:
            write_text(temporary / "new.txt", "new")
            monkeypatch.setattr(os, "replace", refuse)

    with pytest.raises(WriteError, match="permission"):
        write()
    assert names_in(tmp_path) == ["run"]
    assert names_in(tmp_path / "run") == ["old.txt"]


@pytest.mark.parametrize("variable", ["cwd", "home"])
def test_a_folder_around_the_current_or_home_folder_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "work" / "inner").mkdir(parents=True)
    monkeypatch.setattr(Path, variable, classmethod(lambda cls: tmp_path / "work" / "inner"))
    with pytest.raises(WriteError, match="it contains"), atomic_folder(tmp_path / "work", force=True):
        pass
    assert (tmp_path / "work" / "inner").is_dir()


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path: Path) -> None:
    host = files._host()
    dead = tmp_path / f".out.txt.surgeon-tmp-{dead_pid()}-{host}-00000000"
    alive = tmp_path / f".out.txt.surgeon-tmp-{os.getppid()}-{host}-00000000"
    foreign = tmp_path / f".other.txt.surgeon-tmp-{dead_pid()}-{host}-00000000"
    for leftover in (dead, alive, foreign):
        leftover.write_text("half")
    write_text(tmp_path / "out.txt", "x")
    assert names_in(tmp_path) == sorted([alive.name, foreign.name, "out.txt"])


def test_a_folder_moved_aside_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    backup = tmp_path / f".run.surgeon-backup-{dead_pid()}-{files._host()}-00000000"
    backup.mkdir()
    (backup / "old.txt").write_text("old")
    with pytest.raises(ExistsError), atomic_folder(tmp_path / "run"):
        pass
    assert names_in(tmp_path / "run") == ["old.txt"]


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.txt")
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "empty").mkdir()
    check_writable(tmp_path / "old.txt", force=True)
    check_writable(tmp_path / "empty")
    with pytest.raises(ExistsError):
        check_writable(tmp_path / "old.txt")
    assert names_in(tmp_path) == ["empty", "old.txt"]


def test_json_reads_back_with_its_order(tmp_path: Path) -> None:
    data = {"b": 1, "a": [1.5, None, "å"]}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == list(data.items())
    assert text.endswith("}\n")
    assert "å" in text


def test_tied_and_empty_tensors_are_all_in_the_file(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = torch.arange(6.0)
    tensors = {"a": whole, "b": whole, "part": whole[2:4], "t": whole.view(2, 3).t(), "e": torch.zeros(0, 3)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"k": "v"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert sorted(loaded) == sorted(tensors)
    assert all(torch.equal(loaded[key], value) for key, value in tensors.items())
    assert loaded["e"].shape == (0, 3)


def test_tensors_that_share_nothing_are_not_copied() -> None:
    first, second = torch.ones(3), torch.ones(3)
    result = independent_tensors({"a": first, "b": second, "c": first})
    pointers = [tensor.data_ptr() for tensor in result.values()]
    assert pointers[:2] == [first.data_ptr(), second.data_ptr()]
    assert len(set(pointers)) == 3


def test_a_tensor_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="expected dense tensors, got 'a'"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.eye(2).to_sparse()})
    assert names_in(tmp_path) == []


def test_sha256_of_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(CheckpointError, match="check the path"):
        sha256_of_file(tmp_path / "none")
