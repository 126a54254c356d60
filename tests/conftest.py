"""What holds for every test: fixed seeds, one thread, and no state left behind."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.pop("COLUMNS", None)  # what pytest gives its workers is no width that somebody wants
os.environ["SURGEON_HOME"] = tempfile.mkdtemp(prefix="surgeon-tests-")  # what is remembered, for the tests alone

import hypothesis
import numpy as np
import pytest
import torch

from surgeon.support.e3nn_compat import import_e3nn
from tests.codegen import optimised_once

atexit.register(shutil.rmtree, os.environ["SURGEON_HOME"], ignore_errors=True)
# Nearly all garbage is freed by counting references. Looking for the rest as often as Python does by itself, among
# what all the libraries consist of, takes a twentieth of the time.
gc.set_threshold(10_000, 10, 10)
# Tests ask what is left of a process that ends, not of a machine that loses its power: nothing waits for the disk.
os.fsync = lambda descriptor: None
# Of what seeds devices that are not in use torch keeps a stack trace each time, most of a millisecond.
if not torch.cuda.is_available():
    for module in (torch.cuda.random, torch.xpu.random, torch.mtia):
        module._lazy_call = lambda call, **named: None
os.umask(0o022)  # task files that a group may write are refused

# A shell that starts the tests in the background lets them, and the processes they start, ignore interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Networks in tests import e3nn as their authors would, which the oldest supported version does not survive by itself.
import_e3nn()
optimised_once()

TESTS = Path(__file__).parent
# Task files: they import what lies beside them where they are copied to, or a library that need not be there.
collect_ignore = ["export/particles.py", "families/pyg_messages.py", "families/pyg_task.py"]
TOUCH_E3NN = ("adapters", "editing", "finding", "algebra/test_representations.py")
E3NN = re.compile(r"\b(e3nn|o3|nets|tiny)\b")
"""Of a file in these folders that uses it, by itself or through the small networks of the tests."""


@functools.cache
def touches_e3nn(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / part) for part in TOUCH_E3NN) and bool(E3NN.search(path.read_text()))


def own_path() -> list[str]:
    """``sys.path`` without installed libraries, some of which add a folder of theirs when they are first imported."""
    return [entry for entry in sys.path if "site-packages" not in entry]


def restore_own_path(path: list[str]) -> None:
    sys.path[:] = path + [entry for entry in sys.path if "site-packages" in entry]


WATCHED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "current folder": (Path.cwd, os.chdir),
    "sys.path": (own_path, restore_own_path),
}


def pytest_configure() -> None:
    torch.set_num_threads(int(os.environ.get("SURGEON_TEST_THREADS", "1")))
    # Without derandomize every run would draw other examples, and a red test could turn green by itself.
    hypothesis.settings.register_profile("surgeon", derandomize=True, deadline=None, print_blob=True)
    hypothesis.settings.load_profile("surgeon")


def pytest_report_header() -> str:
    return ", ".join(f"{package} {version(package)}" for package in ("torch", "e3nn", "numpy"))


def pytest_collection_finish() -> None:
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if touches_e3nn(item.path):
            item.add_marker(pytest.mark.e3nn)


@pytest.fixture(autouse=True)
def fixed_seeds(request: pytest.FixtureRequest) -> None:
    """Seed by the test's own name, so that it draws the same numbers alone and in the whole suite.

    The environment variable SURGEON_TEST_SEED draws others: what a test asserts has to hold for any.
    """
    seed = (zlib.crc32(request.node.nodeid.encode()) + int(os.environ.get("SURGEON_TEST_SEED", "0"))) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every kind of device: a millisecond
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that changes a global setting and leaves it changed; put it back for the next one."""
    before = {name: read() for name, (read, _) in WATCHED.items()}
    yield
    changed = {name: (before[name], read()) for name, (read, _) in WATCHED.items() if read() != before[name]}
    for name, (old, _) in changed.items():
        WATCHED[name][1](old)
    assert not changed, f"the test changed and did not restore: {changed}"
