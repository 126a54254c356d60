"""Commands in processes forked from this one, which has imported everything: alone, in groups, and two that meet."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from accelerate.state import AcceleratorState
from joblib.externals.loky.backend import context

from surgeon_cli.main import main
from tests.campaigns.injection import DONE, READY, TIMEOUT, Injector, await_file
from tests.hub.client import OWNER_TOKEN, USERS, no_pauses, point_client_at
from tests.hub.server import Hub
from tests.hub.store import Store

Words = Sequence[str]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, negative if it was killed, what it printed, and which calls it made."""

    code: int
    out: str
    calls: tuple[str, ...] = ()

    @property
    def errors(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.startswith("error: ")]


@dataclass(frozen=True)
class Place:
    """Where commands run: a folder, and the address of the Hub that they know, "" for none."""

    folder: Path
    endpoint: str = ""

    def run(self, *commands: Words, injector: Injector | None = None) -> Ended:
        """Run commands one after the other in one process; the exit code is that of the last."""
        with _notes() as notes:
            pid = self._fork(commands, injector, notes, "out")
            return _ended(pid, notes, "out")

    def met(self, command: Words, injector: Injector, other: Words) -> tuple[Ended, Ended]:
        """Run a command, and another one where it strikes; return how both ended."""
        with _notes() as notes:
            first = self._fork([command], injector, notes, "first")
            second = self._fork([other], None, notes, "second", waits=True)
            ended = _ended(first, notes, "first")
            (notes / READY).touch()  # where the first one has not come to the call
            return ended, _ended(second, notes, "second")

    def group(self, command: Words, count: int, injector: Injector) -> Ended:
        """Run a command in processes of one group, as torchrun starts them: where one fails, the others are killed.

        The exit code is that of the first to fail, and what is printed that of all.
        """
        with _notes() as notes, socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
            free.close()
            ranks = {}
            for rank in range(count):
                known = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                variables = {name: str(value) for name, value in known.items()}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
                given = injector if injector.process == rank else None
                ranks[self._fork([command], given, notes, f"out {rank}", variables)] = rank
            failed = 0
            while ranks:
                pid, status = os.waitpid(-1, 0)
                code = os.waitstatus_to_exitcode(status)
                if ranks.pop(pid, None) is not None and code and not failed:
                    failed = code
                    for other in ranks:
                        os.kill(other, signal.SIGKILL)
            out = "".join((notes / f"out {rank}").read_text(errors="replace") for rank in range(count))
            return Ended(failed, out, _calls(notes))

    def _fork(
        self,
        commands: Sequence[Words],
        injector: Injector | None,
        notes: Path,
        out: str,
        variables: Mapping[str, str] | None = None,
        waits: bool = False,
    ) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        code = 70
        try:
            self._prepare(notes / out)
            if variables:
                os.environ.update(variables)
                AcceleratorState._reset_state(reset_partial_state=True)  # this process's parent was alone
            if waits:
                await_file(notes / READY)
            (injector or Injector(str(self.folder), -1)).install(notes)
            for command in commands:
                code = _exit_code(command)
                if code not in (0, 1, 2):
                    break
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:  # noqa: BLE001 (what comes through is the finding)
            os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
            code = 70
        finally:
            if waits:
                (notes / DONE).touch()
            os._exit(code)

    def _prepare(self, out: Path) -> None:
        """Make a forked process one that a shell has started."""
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(TIMEOUT)
        resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT))
        os.chdir(self.folder)
        if self.endpoint:
            patch = pytest.MonkeyPatch()
            hub = SimpleNamespace(endpoint=self.endpoint)
            point_client_at(hub, self.folder / "hf-home", OWNER_TOKEN, patch).__enter__()
            no_pauses(patch)
        warnings.simplefilter("ignore")  # those of forks, of DDP
        context.set_start_method("fork", force=True)  # so that workers have imported everything, and the injector


def _exit_code(command: Words) -> int:
    try:
        main(list(command))
    except SystemExit as error:
        return int(error.code or 0)
    raise AssertionError(f"{command[0]} did not exit")


@contextmanager
def _notes() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _ended(pid: int, notes: Path, out: str) -> Ended:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _wait_for_group(pid)
    path = notes / out
    return Ended(code, path.read_text(errors="replace") if path.exists() else "", _calls(notes))


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
    with suppress(psutil.Error, OSError):
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    return False


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
