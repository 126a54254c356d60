"""Processes of a comparison: each has a GPU of its own, and none outlives the one that asked for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surgeon.opening.options import OpenOptions
from surgeon.training import spread
from surgeon.training.outcomes import Point
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import Recipe, ending_with, work_beside_others, worker_number
from tests.commands import CHILD_ENVIRONMENT

RECIPE = Recipe("net-relaxed", OpenOptions(), FinetuneSettings(), ".")
POINT = Point("plain", 0, 1e-3)


def gpus_taken(monkeypatch: pytest.MonkeyPatch, gpus: int, *workers: str) -> list[int]:
    """Return the GPUs on which processes of these names set out to work."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(spread, "work", lambda *_: (POINT, None))
    for name in workers:
        monkeypatch.setattr(multiprocessing, "current_process", lambda name=name: SimpleNamespace(name=name))
        work_beside_others(RECIPE, POINT, 1, os.getppid())
    return taken


def test_processes_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"LokyProcess-{number}" for number in (3, 4, 5, 6)]
    assert sorted(gpus_taken(monkeypatch, 4, *names)) == [0, 1, 2, 3]
    assert sorted(gpus_taken(monkeypatch, 2, *names)) == [0, 0, 1, 1]


@pytest.mark.parametrize("gpus", [0, 1])
def test_with_one_gpu_or_none_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    assert gpus_taken(monkeypatch, gpus, "LokyProcess-1", "LokyProcess-2") == []


def number_and_parent(_: int) -> tuple[int, int]:
    time.sleep(1.0)  # so that every process gets one
    return worker_number(), os.getppid()


@pytest.mark.slow
def test_processes_of_joblib_have_numbers_in_a_row() -> None:
    """What the turns rely on."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    found: list[Any] = Parallel(n_jobs=2, batch_size=1)(delayed(number_and_parent)(k) for k in range(6))
    get_reusable_executor().shutdown(wait=True)
    (first, second), parents = sorted({number for number, _ in found}), {parent for _, parent in found}
    assert second == first + 1
    assert parents == {os.getpid()}
    assert worker_number() == 0


WORKING = """
import sys, time
from surgeon.training.spread import ending_with
with ending_with(int(sys.argv[1])):
    print("working", flush=True)
    time.sleep(3600)
"""
ASKING = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {WORKING!r}, str(os.getpid())])
"""


@pytest.mark.slow
def test_a_run_ends_with_the_process_that_asked_for_it() -> None:
    asking = subprocess.Popen([sys.executable, "-c", ASKING], env=CHILD_ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "working\n"
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    assert asking.stdout.read() == ""  # the end of the pipe, which the working process holds as long as it lives
    asking.stdout.close()


def test_a_run_whose_parent_lives_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, ends, looked = os.getppid(), [], threading.Semaphore(0)
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(os, "getppid", lambda: looked.release() or parent)
    with ending_with(parent):
        assert all(looked.acquire(timeout=60) for _ in range(2))  # the second look comes after what the first led to
    assert ends == []


def test_a_run_whose_parent_is_gone_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    with ending_with(os.getppid() + 1):
        assert ended.wait(timeout=60)
