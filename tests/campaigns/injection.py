"""What happens at one of the calls by which a command writes, or by which it reads what the user gave it."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import safetensors.torch
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

CALLS = ("replace", "rename", "link", "fsync", "mkdir", "chmod", "unlink", "rmdir")
ERRNOS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EINTR)
SIGNALS = {
    f"{name} {when}": (getattr(signal, name), when)
    for name in ("SIGKILL", "SIGTERM", "SIGINT")
    for when in ("before", "after")
}
MEETING, RIVAL = "another process", "a rival"
"""At the call another command runs in the same folder, from its start to its end; a rival writes other content."""
CLOCK, SOURCE = "clock in 1970", "source changed"
"""From the call on it is 1970; at the call somebody pushes another model to the Hub."""
CHANGES = ("swapped", "overwritten", "cut off")
"""At a call that reads a file, another one takes its place, or is written into it, or its end is lost."""
PUSHED = "pushed"
"""The folder of repositories as somebody else would push them, beside the other versions of files."""
TIMEOUT = 300
READY, DONE = "ready", "done"
TRAINED = ("step", "stepped")


@dataclass
class Injector:
    """Counts the calls that write below a folder, ask the Hub or train, and does something at one of them.

    Attributes:
        folder: calls elsewhere do not count.
        at: number of the call, from 1; 0 for none.
        fault: an errno, or one of the words above.
        workers: whether only calls of processes that the command starts count, and not its own; of each by itself.
        process: rank of the one in which calls count, of a command that runs in several.
        inputs: names of files below the folder; where any are given, calls that read these count instead.
    """

    folder: str
    at: int = 0
    fault: int | str = ""
    workers: bool = False
    process: int = 0
    inputs: tuple[str, ...] = ()

    def install(self, notes: Path) -> None:
        """Count from now on; without a fault, the calls are written down in a folder."""
        self.made, self.pid, self.notes, self.write, self.time = 0, os.getpid(), notes, os.open, time.time
        builtins.open = io.open = self._opening(builtins.open)
        if self.inputs:
            os.preadv = self._counted("read", os.preadv)
            return
        for name in CALLS:
            setattr(os, name, self._counted(name, (lambda *_: None) if name == "fsync" else getattr(os, name)))
        torch.save = self._counted("torch.save", torch.save)
        safetensors.torch.save_file = self._counted("save_file", safetensors.torch.save_file)
        os.open = self._counted("os.open", os.open, lambda given: bool(given[1] & (os.O_WRONLY | os.O_RDWR)))
        httpx2.Client.send = self._counted("send", httpx2.Client.send)
        for name, register in zip(
            TRAINED, (register_optimizer_step_pre_hook, register_optimizer_step_post_hook), strict=True
        ):
            register(self._counted(name, lambda *_: None))

    def _opening(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def counts(given: tuple[Any, ...], named: Any) -> bool:
            mode = given[1] if len(given) > 1 else named.get("mode", "r")
            return isinstance(mode, str) and bool(set(mode) & set("wax+")) != bool(self.inputs)

        def call(*given: Any, **named: Any) -> Any:
            return self._do("open", usual, given, named) if counts(given, named) else usual(*given, **named)

        return call

    def _counted(
        self, name: str, usual: Callable[..., Any], counts: Callable[[tuple[Any, ...]], bool] = lambda _: True
    ) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            return self._do(name, usual, given, named) if counts(given) else usual(*given, **named)

        return call

    def _where(self, name: str, given: tuple[Any, ...]) -> str | None:
        """Return the file that a call is about, seen from the folder, "" for none; None if the call does not count."""
        if self.inputs and isinstance(given[0], int):
            given = (os.readlink(f"/proc/self/fd/{given[0]}").removesuffix(" (deleted)"),)
        paths = [os.path.abspath(part) for part in given if isinstance(part, str | os.PathLike)]
        inside = [path for path in paths if path.startswith(f"{self.folder}/")]
        if self.inputs:
            return next((at for path in inside if (at := os.path.relpath(path, self.folder)) in self.inputs), None)
        if not inside and name not in ("fsync", "send", *TRAINED):
            return None
        return os.path.basename(paths[0]) if inside else ""

    def _do(self, name: str, usual: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        where = self._where(name, given) if (os.getpid() == self.pid) != self.workers else None
        if where is None:
            return usual(*given, **named)
        self.made += 1
        if not self.at:
            self._note(f"{os.getpid()} {name} {where}\n")
        if self.made != self.at:
            return usual(*given, **named)
        if isinstance(self.fault, int):
            if name == "send":
                raise httpx2.ConnectError(os.strerror(self.fault))
            raise OSError(self.fault, os.strerror(self.fault), *given[:1])
        if self.fault in SIGNALS:
            number, when = SIGNALS[self.fault]
            result = usual(*given, **named) if when == "after" else None
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # a signal is handled between two instructions
            return usual(*given, **named) if when == "before" else result
        if self.fault in (MEETING, RIVAL):
            self._meet()
        elif self.fault == CLOCK:
            begun = self.time() - 100_000
            time.time, time.time_ns = (lambda: self.time() - begun), (lambda: int(self.time() - begun) * 10**9)
            usual_date, usual_day = time.localtime, time.gmtime
            time.localtime = lambda at=None: usual_date(time.time() if at is None else at)
            time.gmtime = lambda at=None: usual_day(time.time() if at is None else at)
        elif self.fault == SOURCE:
            self._push_another()
        else:
            self._change(where)
        return usual(*given, **named)

    def _note(self, line: str) -> None:
        descriptor = self.write(self.notes / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def _meet(self) -> None:
        """Let the other process go, and wait until it has ended."""
        os.close(self.write(self.notes / READY, os.O_WRONLY | os.O_CREAT))
        await_file(self.notes / DONE)

    def _push_another(self) -> None:
        from huggingface_hub import HfApi

        for folder in other_version(self.folder, PUSHED).glob("*/*"):
            HfApi().upload_folder(repo_id="/".join(folder.parts[-2:]), folder_path=folder)

    def _change(self, name: str) -> None:
        """Do to a file what another program would do."""
        path, other = Path(self.folder, name), other_version(self.folder, name)
        if self.fault == "cut off":
            os.truncate(path, path.stat().st_size // 2)
        elif self.fault == "swapped":
            os.replace(shutil.copy(other, other_version(self.folder, "swap")), path)
        else:
            path.write_bytes(other.read_bytes())


def other_version(folder: str | Path, name: str) -> Path:
    """Return where another version of a file or folder of the campaign's folder is."""
    return Path(folder).parent / "other" / name


def await_file(path: Path) -> None:
    """Wait for a file of another process.

    Raises:
        TimeoutError: if it does not come.
    """
    until = time.monotonic() + TIMEOUT / 4
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"two processes waited for each other ({path.name})")
        time.sleep(0.002)
