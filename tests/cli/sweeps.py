"""Commands that are killed before every call, or that meet: processes forked from one that has imported everything."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.codegen import optimised_once
from tests.commands import files_in

Command = Sequence[str]
CALLS = ("replace", "rename", "link", "mkdir", "rmdir", "unlink")


@dataclass(frozen=True)
class Done:
    """A command that has ended in a process of its own; the code of a killed one is negative.

    Attributes:
        files: hash of every file in the current folder afterwards.
    """

    pid: int
    code: int
    out: str
    err: str
    files: Mapping[str, str]


def start(command: Command, before: Callable[[], object] = lambda: None) -> int:
    """Fork a process that does something and then runs a command in the current folder; return its id."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        for number in (1, 2):
            os.dup2(os.open(f"../{os.getpid()}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        before()
        surgeon(command)
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(pid: int) -> Done:
    """Wait for a process and return how it ended and what it has said."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out, err = (Path(f"../{pid}.{number}").read_text() for number in (1, 2))
    return Done(pid, code, out, err, files_in(Path.cwd()))


def surgeon(command: Command) -> None:
    torch.set_num_threads(1)
    importlib.import_module("surgeon_cli.main").main(list(command))


@dataclass
class Killer:
    """Ends this process before one of the calls that change what others find.

    What happens inside folders that are still being written, or already being deleted, does not count.
    """

    left: int

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            places = [Path(part).parts for part in arguments if isinstance(part, str | os.PathLike)]
            hidden = all(any(".surgeon-" in part for part in place[:-1]) for place in places)
            if not hidden and "dir_fd" not in named:
                if not self.left:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.left -= 1
            return real(*arguments, **named)

        return call


def killed_before_every_call(command: Command, afterwards: Sequence[Command]) -> None:
    """Kill a command before its first call, its second, ..., until it ends unharmed; print how all others end then."""
    work, kept, found = Path.cwd(), Path.cwd().with_name("kept"), []
    shutil.copytree(work, kept)
    optimised_once()
    for one in (command, *afterwards):  # once here, so that those forked from here have imported and compiled
        with suppress(SystemExit):
            surgeon(one)
    gc.collect()
    gc.freeze()  # what is here already is not looked through, and so not copied, in each process
    gc.disable()
    for calls in itertools.count():
        shutil.rmtree(work)
        shutil.copytree(kept, work)
        os.chdir(work)
        found.append([finished(start(command, Killer(calls).install)), *(finished(start(one)) for one in afterwards)])
        if found[-1][0].code != -signal.SIGKILL:
            break
    Path("../found.json").write_text(json.dumps(found, default=asdict))


def meeting(second: Command, place: str, first: Command) -> None:
    """Run a command, and at its first call of a function a second one from its start to its end."""
    reading, writing = os.pipe()

    def wait() -> None:
        os.close(writing)
        if not os.read(reading, 1):  # the first one has ended without coming there
            os._exit(71)

    pid, (module, name) = start(second, wait), place.split(":")
    holder = importlib.import_module(module)
    usual, left = getattr(holder, name), [pid]

    def and_then_the_other(*arguments: Any, **named: Any) -> Any:
        if left:
            left.clear()
            os.write(writing, b"x")
            Path("../second.json").write_text(json.dumps(asdict(finished(pid))))
        return usual(*arguments, **named)

    setattr(holder, name, and_then_the_other)
    surgeon(first)


def main(arguments: list[str]) -> None:
    what, *given = json.loads(arguments[0])
    {"killed": killed_before_every_call, "meeting": meeting}[what](*given)
