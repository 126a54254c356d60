"""``make test-portable``: the numerical tests as other processors, thread counts, seeds and interpreters run them.

A verdict that holds only on one machine rests on the wrong criterion. Every setting is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMERICAL = (
    "tests/test_chance.py",
    "tests/test_judging.py",
    "tests/test_verdict.py",
    "tests/test_measure.py",
    "tests/families/test_vn.py::test_from_file_to_file",
)
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
SETTINGS = (*PROCESSORS, "SURGEON_TEST_THREADS=2", *(f"SURGEON_TEST_SEED={seed}" for seed in range(1, 6)))
SLICE = ("MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41", "SURGEON_TEST_SEED=1")
"""What continuous integration runs."""
OTHERS = (".venv-py311", ".venv-py313", ".venv-oldest")
"""Environments that are tried if they are there: ``make VENV=.venv-py313 PYTHON=python3.13 setup``."""


def run(python: str, setting: str, tests: list[str]) -> bool:
    """Run the tests under one setting, and print how many passed and failed."""
    given = dict(entry.split("=", 1) for entry in setting.split())
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, check=False)
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    print(f"{setting or 'as it is':75} {last[0] if last else 'nothing was printed'}", flush=True)
    if done.returncode:
        print("\n".join(line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "E  "))))
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Run a slice with ``--slice``, else everything; other arguments are the tests to run."""
    tests = [word for word in arguments if word != "--slice"] or list(NUMERICAL)
    settings = SLICE if "--slice" in arguments else SETTINGS
    good = [run(sys.executable, setting, tests) for setting in settings]
    for folder in () if "--slice" in arguments else OTHERS:
        python = ROOT / folder / "bin" / "python"
        if python.is_file():
            good.append(run(str(python), "", tests))
        else:
            print(f"{folder}: skipped, there is no such environment")
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
