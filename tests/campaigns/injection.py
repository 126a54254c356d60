"""Commands in forked processes, and a fault at one of the calls by which they write."""

from __future__ import annotations

import builtins
import gc
import io
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import psutil
import pytest
import safetensors.torch
import torch
from joblib.externals.loky.backend import context

from surgeon_cli.main import main
from tests.hub.client import OWNER_TOKEN, USERS, no_pauses, point_client_at
from tests.hub.server import Hub
from tests.hub.store import Store

CALLS = ("replace", "rename", "link", "fsync", "mkdir", "chmod", "unlink", "rmdir")
SIGNALS = {
    f"{name} {when}": (getattr(signal, name), when)
    for name in ("SIGKILL", "SIGTERM", "SIGINT")
    for when in ("before", "after")
}
MEETING = "another process"
"""At the call, another command runs in the same folder from its start to its end."""
TIMEOUT = 300
READY, DONE = "ready", "done"


@dataclass
class Injector:
    """Counts the calls that write below a folder or ask the Hub, and does something at one of them.

    Attributes:
        folder: calls elsewhere do not count.
        at: number of the call, from 1; 0 for none.
        fault: an errno, one of :data:`SIGNALS`, or :data:`MEETING`.
        workers: whether only calls of processes that the command starts count, and not its own; of each by itself.
    """

    folder: str
    at: int = 0
    fault: int | str = ""
    workers: bool = False

    def install(self, notes: Path) -> None:
        """Count from now on; without a fault, the calls are written down in a folder."""
        self.made, self.process, self.notes, self.write = 0, os.getpid(), notes, os.open
        for name in CALLS:
            setattr(os, name, self._counted(name, (lambda *_: None) if name == "fsync" else getattr(os, name)))
        torch.save = self._counted("torch.save", torch.save)
        safetensors.torch.save_file = self._counted("save_file", safetensors.torch.save_file)
        builtins.open = io.open = self._opening(builtins.open)
        os.open = self._counted("os.open", os.open, lambda given: bool(given[1] & (os.O_WRONLY | os.O_RDWR)))
        httpx2.Client.send = self._counted("send", httpx2.Client.send)

    def _opening(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def writes(given: tuple[Any, ...], named: Any = None) -> bool:
            mode = given[1] if len(given) > 1 else (named or {}).get("mode", "r")
            return isinstance(mode, str) and bool(set(mode) & set("wax+"))

        def call(*given: Any, **named: Any) -> Any:
            if not writes(given, named):
                return usual(*given, **named)
            return self._do("open", usual, given, named)

        return call

    def _counted(
        self, name: str, usual: Callable[..., Any], counts: Callable[[tuple[Any, ...]], bool] = lambda _: True
    ) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            return self._do(name, usual, given, named) if counts(given) else usual(*given, **named)

        return call

    def _do(self, name: str, usual: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        paths = [str(part) for part in given if isinstance(part, str | os.PathLike)]
        here = name in ("fsync", "send") or any(os.path.abspath(path).startswith(self.folder) for path in paths)
        if not here or (os.getpid() == self.process) == self.workers:
            return usual(*given, **named)
        self.made += 1
        if not self.at:
            self._note(f"{os.getpid()} {name} {os.path.basename(paths[0]) if paths else ''}\n")
        if self.made != self.at:
            return usual(*given, **named)
        if isinstance(self.fault, int):
            if name == "send":
                raise httpx2.ConnectError(os.strerror(self.fault))
            raise OSError(self.fault, os.strerror(self.fault), *given[:1])
        if self.fault == MEETING:
            self._meet()
            return usual(*given, **named)
        number, when = SIGNALS[self.fault]
        result = usual(*given, **named) if when == "after" else None
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # a signal is handled between two instructions
        return usual(*given, **named) if when == "before" else result

    def _note(self, line: str) -> None:
        descriptor = self.write(self.notes / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def _meet(self) -> None:
        """Let the other process go, and wait until it has ended."""
        os.close(self.write(self.notes / READY, os.O_WRONLY | os.O_CREAT))
        _await(self.notes / DONE)


def _await(path: Path) -> None:
    until = time.monotonic() + TIMEOUT / 4
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"two processes waited for each other ({path.name})")
        time.sleep(0.002)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative if it was killed, what it printed, and which calls it made."""

    code: int
    out: str
    calls: tuple[str, ...] = ()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.startswith("error: ")]


def forked(
    folder: Path,
    command: Sequence[str],
    injector: Injector | None = None,
    endpoint: str = "",
    meets: Sequence[str] = (),
) -> list[Ended]:
    """Run a command in a process forked from this one, and one that it meets; they are killed when they take too long.

    Args:
        injector: of the first one; without a fault, it lists its calls.
        endpoint: of the Hub that both know.
        meets: words of a command that runs where the fault of the first one is :data:`MEETING`.
    """
    with tempfile.TemporaryDirectory() as name:
        notes, started = Path(name), []
        sys.stdout.flush()
        for number, words in enumerate([command, *([meets] if meets else [])]):
            if not (pid := os.fork()):
                _child(folder, words, None if number else injector, endpoint, notes, number)
            started.append(pid)
        ended = []
        for number, pid in enumerate(started):
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            (notes / READY).touch()  # where the first one has not come to the call
            _wait_for_group(pid)
            out = notes / f"out {number}"
            ended.append(Ended(code, out.read_text(errors="replace") if out.exists() else "", _calls(notes)))
        return ended


def _calls(notes: Path) -> tuple[str, ...]:
    """Return the calls of the process that has made the most."""
    by_process = defaultdict(list)
    for line in (notes / "calls").read_text().splitlines() if (notes / "calls").exists() else []:
        process, _, call = line.partition(" ")
        by_process[process].append(call)
    return tuple(max(by_process.values(), key=len, default=()))


def _wait_for_group(group: int) -> None:
    """Wait for the processes that a command has started, which end soon when it is killed."""
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until and any(_runs(process, group) for process in psutil.process_iter()):
        time.sleep(0.02)


def _runs(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _child(
    folder: Path, command: Sequence[str], injector: Injector | None, endpoint: str, notes: Path, number: int
) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(notes / f"out {number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(TIMEOUT)
        resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT))
        os.chdir(folder)
        if endpoint:
            patch = pytest.MonkeyPatch()
            point_client_at(SimpleNamespace(endpoint=endpoint), folder / "hf-home", OWNER_TOKEN, patch).__enter__()
            no_pauses(patch)
        if number:
            _await(notes / READY)
        warnings.filterwarnings("ignore", message=".*fork")
        context.set_start_method("fork", force=True)  # so that workers have imported everything, and the injector
        (injector or Injector(str(folder), -1)).install(notes)
        try:
            main(list(command))
        except SystemExit as error:
            code = int(error.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # noqa: BLE001 (what comes through is the finding)
        os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        if number:
            (notes / DONE).touch()
        os._exit(code)


@contextmanager
def loopback(store: Store | None) -> Iterator[str]:
    """Run a Hub in a process of its own, so that this one has no threads; yield its address, "" for no Hub."""
    if store is None:
        yield ""
        return
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        hub = Hub(dict(USERS))
        hub.store = store
        os.write(writing, hub.endpoint.encode())
        while True:
            signal.pause()
    os.close(writing)
    try:
        yield os.read(reading, 100).decode()
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def settle() -> None:
    """Leave what is imported alone, so that forked processes share it."""
    gc.collect()
    gc.freeze()
