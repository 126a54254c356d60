"""Folders that are opened again: sealed, saved anew in place, locked, and whole after a kill at any point."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import CheckpointError, ExistsError, WriteError
from surgeon.files import atomic as files
from surgeon.files import seals as folders
from surgeon.files.atomic import atomic_folder, put_back
from surgeon.files.content import write_text
from surgeon.files.outputs import writing_alone
from surgeon.files.seals import SEAL_FILE, check_seal, recover, seal_folder, updated_folder
from tests.commands import CHILD_ENVIRONMENT, dead_pid, files_in

NAMES = ("README.md", "a.txt", "deep/b.txt")


class Killed(BaseException):
    """Stands for SIGKILL: from the chosen call on, no call that changes a file does anything."""


@contextmanager
def killed_after(calls: int, pid: int) -> Iterator[list[str]]:
    """Let as many calls that change files succeed, and nothing afterwards; the process is one that has ended."""
    done: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            reads = name == "open" and not set(str(named.get("mode", (*arguments, "r")[1]))) & set("wxa+")
            if not reads:
                if len(done) >= calls:
                    raise Killed
                done.append(name)
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        patch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
        for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "link", "fsync", "chmod"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(builtins, "open", counted("open", builtins.open))
        try:
            yield done
        except Killed:
            done.append("killed")


def write(folder: Path, content: str) -> None:
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        write_text(folder / name, content)
    seal_folder(folder)


def save(folder: Path, content: str) -> None:
    with updated_folder(folder) as staged:
        write(staged, content)


def state_of(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in NAMES}


def test_a_save_that_is_killed_anywhere_leaves_one_whole_state_and_the_users_files(tmp_path: Path) -> None:
    pid, seen = dead_pid(), set()
    for calls in range(200):
        folder = tmp_path / str(calls)
        save(folder, "old")
        (folder / "notes.txt").write_text("mine")
        (folder / "deep" / "plot.txt").write_text("mine")
        with killed_after(calls, pid) as done:
            save(folder, "new")
        recover(folder)
        check_seal(folder, NAMES)
        (state,) = state_of(folder)
        assert (folder / "notes.txt").read_text() == (folder / "deep" / "plot.txt").read_text() == "mine"
        seen.add((state, "killed" in done))
        if "killed" not in done:
            break
    assert seen == {("old", True), ("new", True), ("new", False)}
    save(folder, "newer")
    assert state_of(folder) == {"newer"}
    assert set(files_in(folder)) == {*NAMES, SEAL_FILE, "notes.txt", "deep/plot.txt"}


def test_a_killed_recovery_is_finished_by_the_next_one(tmp_path: Path) -> None:
    pid, counts = dead_pid(), []
    for calls in range(50):
        folder = tmp_path / str(calls)
        save(folder, "old")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folders, "finish_update", lambda folder: None)
            save(folder, "new")
        with killed_after(calls, pid) as done:
            recover(folder)
        recover(folder)
        check_seal(folder, NAMES)
        assert state_of(folder) == {"new"}
        counts.append(len(done))
        if "killed" not in done:
            break
    assert len(counts) > len(NAMES)


def test_a_replaced_folder_that_is_killed_anywhere_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    pid, seen = dead_pid(), set()
    for calls in range(200):
        folder = tmp_path / str(calls) / "run"
        folder.parent.mkdir()
        save(folder, "old")
        with killed_after(calls, pid) as done, atomic_folder(folder, force=True) as temporary:
            write(temporary, "new")
        recover(folder)
        check_seal(folder, NAMES)
        (state,) = state_of(folder)
        seen.add(state)
        if "killed" not in done:
            break
    assert seen == {"old", "new"}


def test_a_readme_that_the_user_wrote_into_stays(tmp_path: Path) -> None:
    save(tmp_path / "run", "old")
    save(tmp_path / "run", "new")
    assert state_of(tmp_path / "run") == {"new"}
    (tmp_path / "run" / "README.md").write_text("mine")
    for content in ("newer", "newest"):
        save(tmp_path / "run", content)
        assert state_of(tmp_path / "run") == {"mine", content}
    check_seal(tmp_path / "run", ())


def test_every_flipped_bit_is_seen_and_named(tmp_path: Path) -> None:
    save(tmp_path / "run", "content")
    for name in ("a.txt", "deep/b.txt", SEAL_FILE):
        path = tmp_path / "run" / name
        content = path.read_bytes()
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(CheckpointError, match=f"{name}.* is not as it was written"):
                check_seal(tmp_path / "run", NAMES)
        path.write_bytes(content)
    check_seal(tmp_path / "run", NAMES)


def test_a_folder_without_a_seal_or_with_an_unsealed_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "run", "x")
    (tmp_path / "run" / "c.txt").write_text("from elsewhere")
    check_seal(tmp_path / "run", NAMES)
    with pytest.raises(CheckpointError, match=r"c\.txt' is not as it was written"):
        check_seal(tmp_path / "run", (*NAMES, "c.txt"))
    (tmp_path / "run" / SEAL_FILE).unlink()
    with pytest.raises(CheckpointError, match="but there is none: bring the whole folder"):
        check_seal(tmp_path / "run", NAMES)


def test_a_folder_that_may_still_be_replaced_is_refused(tmp_path: Path) -> None:
    for pid, host in ((os.getppid(), files._host()), (dead_pid(), "0" * 8)):
        aside = tmp_path / f".run.surgeon-backup-{pid}-{host}-00000000"
        aside.mkdir()
        with pytest.raises(WriteError, match=f"process {pid} has moved it"):
            put_back(tmp_path)
        aside.rmdir()


def test_of_two_that_write_one_folder_without_force_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, calls = files._refuse_existing_folder, []

    def and_then_the_other(target: Path, force: bool) -> None:
        check(target, force)
        calls.append(target)
        if len(calls) == 2:  # after the last look, and before the folder is put in its place
            write(tmp_path / "other", "theirs")
            os.rename(tmp_path / "other", target)

    (tmp_path / "other").mkdir()
    monkeypatch.setattr(files, "_refuse_existing_folder", and_then_the_other)
    with pytest.raises(ExistsError, match="exists already"), atomic_folder(tmp_path / "run") as temporary:
        write(temporary, "mine")
    assert state_of(tmp_path / "run") == {"theirs"}


def test_of_two_that_write_one_file_without_force_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def and_then_the_other(source: Path, target: Path) -> None:
        target.write_text("theirs")
        link(source, target)

    monkeypatch.setattr(os, "link", and_then_the_other)
    with pytest.raises(ExistsError, match="exists already"):
        write_text(tmp_path / "out.txt", "mine")
    assert (tmp_path / "out.txt").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


HOLDER = """
import os, sys
from surgeon.files.outputs import writing_alone
with writing_alone(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_killed_one_is_succeeded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=CHILD_ENVIRONMENT,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(ExistsError, match=f"is being written by process {holder.pid} on "),
            writing_alone(tmp_path / "run"),
        ):
            pass
        holder.kill()
    for _ in range(2):
        with writing_alone(tmp_path / "run"):
            pass
    (sentence,) = caplog.messages
    assert sentence.startswith(f"taking over run from process {holder.pid} on ")
    assert not any(tmp_path.iterdir())


def test_a_lock_of_one_that_was_killed_at_its_end_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("whole")
    (tmp_path / ".out.surgeon-lock").write_text("process 1 on elsewhere")
    with pytest.raises(ExistsError, match="exists already"), writing_alone(tmp_path / "out", force=False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_that_cannot_be_written_is_told_and_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WriteError, match="the disk is full"), writing_alone(tmp_path / "out"):
        pass
    assert not any(tmp_path.iterdir())
