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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from surgeon_cli.main import main

CALLS = ("replace", "rename", "link", "fsync", "mkdir", "chmod", "unlink", "rmdir")
SIGNALS = {"SIGKILL before": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
KILLED_AFTER = "SIGKILL after"
TIMEOUT = 120


@dataclass
class Injector:
    """Counts the calls that write below a folder, and does something at one of them.

    Attributes:
        folder: calls elsewhere do not count.
        at: number of the call, from 1; 0 for none.
        fault: an errno, the name of a signal, or :data:`KILLED_AFTER`.
    """

    folder: str
    at: int = 0
    fault: int | str = ""
    calls: list[str] = field(default_factory=list)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._counted(name, (lambda *_: None) if name == "fsync" else getattr(os, name)))
        torch.save = self._counted("torch.save", torch.save)
        safetensors.torch.save_file = self._counted("save_file", safetensors.torch.save_file)
        builtins.open = io.open = self._opening(builtins.open)
        os.open = self._counted("os.open", os.open, lambda given: bool(given[1] & (os.O_WRONLY | os.O_RDWR)))

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
        if not (name == "fsync" or any(os.path.abspath(path).startswith(self.folder) for path in paths)):
            return usual(*given, **named)
        self.calls.append(f"{name} {os.path.basename(paths[0]) if paths else ''}")
        if len(self.calls) != self.at:
            return usual(*given, **named)
        if isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault), *given[:1])
        if self.fault == KILLED_AFTER:
            usual(*given, **named)
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), SIGNALS[self.fault])
        time.sleep(0.01)  # a signal is handled between two instructions
        return usual(*given, **named)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative if it was killed, what it printed, and which calls it made."""

    code: int
    out: str
    calls: tuple[str, ...] = ()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.startswith("error: ")]


def forked(folder: Path, command: Sequence[str], injector: Injector | None = None) -> Ended:
    """Run a command in a process forked from this one; it is killed when it takes too long."""
    with tempfile.TemporaryDirectory() as name:
        out, calls = Path(name) / "out", Path(name) / "calls"
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(folder, command, injector, out, calls)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        listed = tuple(calls.read_text().splitlines()) if calls.exists() else ()
        return Ended(code, out.read_text(errors="replace") if out.exists() else "", listed)


def _child(folder: Path, command: Sequence[str], injector: Injector | None, out: Path, calls: Path) -> None:
    code = 70
    try:
        for number in (1, 2):
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT))
        os.chdir(folder)
        write = Path(calls).write_text
        (injector or Injector(str(folder))).install()
        try:
            main(list(command))
        except SystemExit as error:
            code = int(error.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        if injector is not None and not injector.at:
            write("\n".join(injector.calls))
    except BaseException as error:  # noqa: BLE001 (what comes through is the finding)
        os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def settle() -> None:
    """Leave what is imported alone, so that forked processes share it."""
    gc.collect()
    gc.freeze()
