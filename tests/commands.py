"""The command line inside the test's own process (a process of its own takes seconds), and as a child process."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from surgeon.files.seals import SEAL_FILE, seal_folder
from surgeon.opening.trust import remember_task
from surgeon_cli.main import main
from tests import tiny

ROOT = Path(__file__).parents[1]
PYTHON_PATH = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "adapters", "cli"))}
CHILD_ENVIRONMENT = {**os.environ, **PYTHON_PATH}
# Typer makes all commands anew in each call, which takes as long as a quick one.
typer.main.get_command = functools.cache(typer.main.get_command)
# Of `surgeon export`: every check of a certificate is made, on an eighth of the usual group elements and batches.
QUICK = ("--elements", "1", "--batches", "1")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def files_in(folder: Path) -> dict[str, str]:
    """Return the hash of every file, hidden ones included."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


HERE = b"/the/current/folder"
MADE: dict[tuple[Any, ...], dict[str, bytes]] = {}
"""What commands have written in this process: by command and what they found, the place of the folder left out."""


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file but seals, with another name for the folder itself."""
    found = {name: (folder / name).read_bytes() for name in files_in(folder) if Path(name).name != SEAL_FILE}
    return {name: content.replace(os.fsencode(folder), HERE) for name, content in found.items()}


def dead_pid() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class Surgeon:
    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = folder, capsys

    @staticmethod
    def folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Make a current folder that holds ``net.pt`` and ``task.py``, as it was given by hand before."""
        folder = path / "work"
        folder.mkdir()
        monkeypatch.chdir(folder)
        shutil.copy(tiny.__file__, folder / "task.py")
        remember_task(folder / "task.py")
        torch.manual_seed(0)
        torch.save(tiny.Net().state_dict(), folder / "net.pt")
        return folder

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        """Run a command and require its exit code."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = self._capsys.readouterr()
        assert caught.value.code == code, f"{arguments}: {caught.value.code}\n{out}\n{err}"
        return Result(int(caught.value.code), out, err)

    def once(self, *arguments: str) -> None:
        """Have the relaxed or run folder that a command writes: a copy, if it ran on the same files in this process."""
        before = contents_of(self.path)
        key = (arguments, *((name, hashlib.sha256(content).digest()) for name, content in before.items()))
        if key not in MADE:
            self(*arguments)
            after = contents_of(self.path)
            MADE[key] = {name: content for name, content in after.items() if before.get(name) != content}
            return
        for name, content in MADE[key].items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.replace(HERE, os.fsencode(self.path)))
        for name in MADE[key]:
            if name.endswith("/surgeon_config.json"):
                seal_folder((self.path / name).parent)


def child(
    folder: Path, *arguments: str, before: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own, after a few statements and with further variables."""
    code = f"import sys\n{before}\nfrom surgeon_cli.main import main\nmain(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**CHILD_ENVIRONMENT, **(environment or {}), **PYTHON_PATH},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def torchrun(folder: Path, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes as users start them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "surgeon_cli.main"]
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=folder,
        env={**CHILD_ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
