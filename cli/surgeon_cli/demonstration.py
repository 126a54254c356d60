"""The path of the demo: particles whose forces are stronger than in the data that a network was trained on."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import ExistsError, UsageError
from surgeon_cli.screen import say

FILES = ("segnn_nbody.safetensors", "task.py", "segnn.py", "simulate.py")
"""Of examples/nbody, which a wheel has as ``surgeon_cli/nbody``."""

CHECKPOINT, TASK = FILES[:2]


class Clock:
    """What every stage took, in seconds."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.last = 0.0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print a heading, and at the end what the stage took and what has passed since the beginning."""
        print(f"\n=== {title}", flush=True)
        began = time.perf_counter()
        yield
        self.last, passed = time.perf_counter() - began, time.perf_counter() - self.began
        print(f"--- took {self.last:.0f} s; {passed:.0f} s since the beginning", flush=True)


def command(*words: str) -> list[str]:
    """Return how `surgeon` is called in a process of its own, and print it as a user would type it."""
    print(f"\n$ surgeon {shlex.join(words)}", flush=True)
    return [sys.executable, "-m", "surgeon_cli.main", *words]


def surgeon(*words: str) -> None:
    """Do what `surgeon` does on the command line, in this process: torch is imported once for several commands."""
    from surgeon_cli.main import main as entry_point

    command(*words)
    try:
        entry_point(list(words))
    except SystemExit as end:
        require(end.code)
    sys.stdout.flush()


def require(code: str | int | None) -> None:
    """Stop the demo at an exit code other than 0."""
    if code:
        raise SystemExit(f"the demo stopped: the last command that is shown above ended with exit code {code}")


def data_files() -> Path:
    """Return the folder with the demo's files: in an installed wheel, or in the checkout.

    Raises:
        UsageError: if there is none.
    """
    here = Path(__file__).resolve()
    for folder in (here.with_name("nbody"), here.parents[2] / "examples" / "nbody"):
        if all((folder / name).is_file() for name in FILES):
            return folder
    raise UsageError(f"expected the demo's files beside {str(here.parent)!r}, found none: install equisurgeon again")


def relax_and_train(clock: Clock, files: str, out: str, samples: int, epochs: list[str]) -> None:
    """Insert branches into the shipped network, and fine-tune it.

    Args:
        clock: measures the stages.
        files: folder with the checkpoint and its task.
        out: where ``relaxed`` and ``run`` are written.
        samples: trajectories in the test split.
        epochs: options that say how long.
    """
    with clock.stage("1. What is in the checkpoint, and what can be relaxed?"):
        checkpoint, task = f"{files}/{CHECKPOINT}", _task(files, samples)
        surgeon("relax", checkpoint, "--group", "O3", *task, "--dense", "-o", f"{out}/relaxed")
    with clock.stage("2. Fine-tune on 200 trajectories of a stronger interaction, theta 0 -> 1 -> 0"):
        surgeon("finetune", f"{out}/relaxed", "-o", f"{out}/run", "--lr", "2e-3", *epochs)


def strip_and_verify(files: str, out: str, samples: int) -> None:
    """Remove the branches again, certify what is left, and compare it with the shipped network; as above."""
    surgeon("strip", f"{out}/run", "-o", f"{out}/clean")
    surgeon("verify", f"{out}/clean", "--against", f"{files}/{CHECKPOINT}", *_task(files, samples))


def _task(files: str, samples: int) -> tuple[str, ...]:
    return "--task", f"{files}/{TASK}", "--task-args", f'{{"test_samples": {samples}}}'


def run_demo(folder: Path, short: bool) -> None:
    """Take the path in a new folder, into which checkpoint and task are copied.

    Raises:
        ExistsError: if there is such a folder already.
    """
    if folder.exists():
        raise ExistsError(f"{str(folder)!r} exists already: choose another place by `-o`")
    found, clock = data_files(), Clock()
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(found / name, folder / name)
    os.chdir(folder)
    epochs, samples = (4, 300) if short else (30, 1000)
    every = ["--evaluate-every", "2" if short else "5"]
    relax_and_train(clock, ".", ".", samples, ["--epochs", str(epochs), *every])
    with clock.stage("3. Strip the branches, prove it, and compute again what was proved"):
        strip_and_verify(".", ".", samples)
    say(f"\nDone. Everything is in {folder}/: the weights in clean/, and task.py, a complete task file to start from.")
