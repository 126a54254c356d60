"""``make test-portable``: all tests as other processors, thread counts, seeds and versions run them.

A verdict that holds only on one machine rests on the wrong criterion. Every setting is a process of its own; each
processor is tried with another seed, and every other one with two threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROCESSORS = (
    "",
    "MKL_CBWR=AVX2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "ATEN_CPU_CAPABILITY=avx2",
    "ATEN_CPU_CAPABILITY=default",
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41",
)
SETTINGS = tuple(
    f"{processor} SURGEON_TEST_THREADS={1 + number % 2} SURGEON_TEST_SEED={number % 6}".strip()
    for number, processor in enumerate(PROCESSORS)
)
SLICE = SETTINGS[-1:]
"""What continuous integration runs, of the tests that were once red on another processor."""
ONCE_RED = (
    "tests/proof/test_rounding.py",
    "tests/proof/test_equivariance.py",
    "tests/proof/test_strip_and_certify.py",
    "tests/algebra/test_equivariance.py",
    "tests/families/test_vn.py::test_from_file_to_file",
)
WITHOUT_NUMBERS = ("--ignore=tests/hub", "--ignore=tests/test_import_order.py")
OTHERS = {".venv-oldest": "make .venv-oldest/.stamp", ".venv-py313": "make VENV=.venv-py313 PYTHON=python3.13 setup"}
"""Environments of other versions, and how to make each."""


def run(python: str, setting: str, tests: Sequence[str]) -> bool:
    """Run the tests under one setting, and print how many passed and failed."""
    given = dict(entry.split("=", 1) for entry in setting.split())
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, check=False)
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    print(f"{setting or python}: {last[0] if last else 'nothing was printed'}", flush=True)
    if done.returncode:
        print("\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))))
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Run a slice with ``--slice``, else everything; other arguments are passed on to pytest."""
    if "--slice" in arguments:
        return 0 if all([run(sys.executable, setting, ONCE_RED) for setting in SLICE]) else 1
    tests = (*arguments, *WITHOUT_NUMBERS)
    good = [run(sys.executable, setting, tests) for setting in SETTINGS]
    for folder, how in OTHERS.items():
        python = ROOT / folder / "bin" / "python"
        if python.is_file():
            good.append(run(str(python), "", tests))
        else:
            print(f"{folder}: not tried, there is no such environment ({how})")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
