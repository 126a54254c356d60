"""Commands in processes of their own that need not import everything: they are forked from one that has done so."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed import TCPStore

# What `surgeon finetune` imports before it trains.
PRELOADED = [
    "surgeon_cli.main",
    "surgeon.finding.find",
    "surgeon.training.engine",
    "accelerate",
    "e3nn.o3",
    "filelock",
    "msgspec.json",
    "scipy.sparse.linalg",
    "safetensors.torch",
]


def forked(
    folder: Path,
    *arguments: str,
    program: str = "surgeon_cli.main",
    environment: Mapping[str, str] | None = None,
    count: int = 1,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run the function ``main`` of a module in one process, or in several of one group as torchrun starts them.

    A fresh interpreter spends seconds on imports; a process forked from one that has done nothing but these differs
    from it in nothing else. When one of a group fails, the others are killed.

    Args:
        folder: the current folder of the processes.
        arguments: what ``main`` is given.
        program: the module.
        environment: further variables.
        count: the number of processes.
        timeout: seconds after which the processes are killed.

    Returns:
        Exit code (of the first one that failed), and what all of them have printed.

    Raises:
        subprocess.TimeoutExpired: if they have not ended in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as name:
        output = Path(name)
        if count > 1:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        processes = []
        for rank in range(count):
            group = _as_torchrun(rank, count, store.port) if count > 1 else {}
            variables = {**os.environ, **(environment or {}), **group}
            processes.append(context.Process(target=_main, args=(folder, program, arguments, variables, output)))
        try:
            for process in processes:
                process.start()
            code = _wait(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        out, err = ((output / stream).read_text() for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess([program, *arguments], code, out, err)


def forked_code(
    folder: Path, code: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a text as ``python -c`` does, with arguments, in a process that need not import everything."""
    return forked(folder, code, *arguments, program="tests.processes", environment=environment)


def main(arguments: list[str]) -> None:
    sys.argv = ["-c", *arguments[1:]]
    exec(compile(arguments[0], "-c", "exec"), {"__name__": "__main__"})  # noqa: S102


def _as_torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
    }


def _main(folder: Path, program: str, arguments: list[str], variables: dict[str, str], output: Path) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    os.fsync = lambda descriptor: None  # as in the tests' own process
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    importlib.import_module(program).main(list(arguments))


def _wait(processes: list[ForkServerProcess], timeout: float) -> int:
    """Return the first exit code that is not 0, as soon as there is one; else 0 when all have ended."""
    until = time.monotonic() + timeout
    running = {process.sentinel: process for process in processes}
    while running:
        ended = multiprocessing.connection.wait(list(running), max(until - time.monotonic(), 0))
        if not ended:
            raise subprocess.TimeoutExpired([process.name for process in processes], timeout)
        for sentinel in ended:
            process = running.pop(sentinel)  # type: ignore[call-overload]
            process.join()
            if process.exitcode:
                return process.exitcode
    return 0
