"""``make mutants``: try every fault of the catalogue, and report those that no test notices.

Each fault goes into a copy of the checkout, and its tests run in a process that is forked after torch was imported. All
tests are run without a fault first. What was tried is kept in ``.mutants.json`` as long as nothing in the code or its
tests changes, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.mutants.catalogue import CODE, ROOT, Mutant, read_mutants

RECORD = ROOT / ".mutants.json"
LIMIT = 240
"""Seconds after which a trial counts as noticed: the fault made something endless."""
OUTCOMES = {0: "survived", 1: "noticed"}
"""By pytest's exit code; with any other, nothing was tried."""


class Copy:
    """A copy of the checkout in which trials run, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ours = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ours.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def start(self, mutant: Mutant | None, tests: Iterable[str]) -> Trial:
        """Put the fault in, fork, and run the tests there."""
        if mutant is not None:
            target = self.folder / mutant.file
            target.write_text(mutant.text(), encoding="utf-8")
            # Compiled files are told apart by seconds and size; a fault can change neither.
            os.utime(target, (1, 1))
        log = self.folder / "trial.log"
        pid = os.fork()
        if pid == 0:
            _run_tests(self.folder, list(tests), log)
        return Trial(self, mutant, pid, log)


class Trial:
    """Tests that are running in a copy."""

    def __init__(self, copy: Copy, mutant: Mutant | None, pid: int, log: Path) -> None:
        self.copy, self.mutant, self.pid, self.log, self.started = copy, mutant, pid, log, time.monotonic()

    def outcome(self) -> str | None:
        """Return what came out, None while the tests still run; the fault is then taken out again."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        late = time.monotonic() - self.started > LIMIT and self.mutant is not None
        if not done and not late:
            return None
        if late and not done:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.mutant is not None:
            shutil.copy2(ROOT / self.mutant.file, self.copy.folder / self.mutant.file)
        if not done:
            return "noticed"
        return OUTCOMES.get(os.waitstatus_to_exitcode(status), "broken")


def _run_tests(folder: Path, tests: list[str], log: Path) -> None:
    """Run pytest in this process, which a fork has just made, and end it."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        paths = [str(folder), *(str(folder / part) for part in ("adapters", "cli"))]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        sys.path[:] = paths + [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
        for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
            del sys.modules[name]
        import pytest

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def state_of_checkout() -> str:
    """Return a hash of everything that decides the outcome of a trial."""
    digest = hashlib.sha256()
    for part in CODE + ("tests", "examples"):
        for file in sorted((ROOT / part).rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class Record:
    """What was tried already, by the fault's content; kept on disk after every trial."""

    def __init__(self, state: str) -> None:
        self.state, self.outcomes = state, {}
        if RECORD.exists():
            kept = json.loads(RECORD.read_text())
            self.outcomes: dict[str, str] = kept["outcomes"] if kept["state"] == state else {}

    @staticmethod
    def key(mutant: Mutant) -> str:
        """Return what stands for a fault in the record."""
        return hashlib.sha256(repr(mutant).encode()).hexdigest()

    def write(self, key: str, outcome: str) -> None:
        """Add one outcome."""
        self.outcomes[key] = outcome
        partial = RECORD.with_suffix(".partial")
        partial.write_text(json.dumps({"state": self.state, "outcomes": self.outcomes}))
        partial.replace(RECORD)


def without_faults(copy: Copy, mutants: Sequence[Mutant], record: Record) -> None:
    """Run all named tests once without a fault: a test that fails by itself notices nothing.

    Raises:
        SystemExit: if one fails.
    """
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    files = {test for test in tests if "::" not in test}
    tests = [test for test in tests if test in files or test.split("::")[0] not in files]
    key = hashlib.sha256(repr(tests).encode()).hexdigest()
    if not tests or record.outcomes.get(key) == "survived":
        return
    print(f"without a fault: {len(tests)} test files and ids", flush=True)
    trial = copy.start(None, tests)
    while (outcome := trial.outcome()) is None:
        time.sleep(0.2)
    if outcome != "survived":
        sys.exit(f"expected the tests to pass without a fault, and they do not:\n{trial.log.read_text()[-3000:]}")
    record.write(key, outcome)


def try_all(copies: Sequence[Copy], mutants: Sequence[Mutant], record: Record) -> dict[str, str]:
    """Return name to outcome: "noticed", "survived", or "broken" if the tests could not run at all."""
    waiting = [mutant for mutant in mutants if record.key(mutant) not in record.outcomes]
    free, running = list(copies), []
    while waiting or running:
        while waiting and free:
            mutant = waiting.pop(0)
            running.append(free.pop().start(mutant, mutant.tests))
        for trial in list(running):
            outcome = trial.outcome()
            if outcome is None:
                continue
            running.remove(trial)
            free.append(trial.copy)
            seconds = time.monotonic() - trial.started
            print(f"{outcome:9s} {trial.mutant.name} ({seconds:.0f} s)", flush=True)
            if outcome == "broken":
                print(trial.log.read_text()[-2000:], flush=True)
            else:
                record.write(record.key(trial.mutant), outcome)
        time.sleep(0.05)
    return {mutant.name: record.outcomes.get(record.key(mutant), "broken") for mutant in mutants}


def report(outcomes: Mapping[str, str], seconds: float) -> int:
    """Print what no test noticed; return the exit code."""
    kinds = {kind: [name for name, outcome in outcomes.items() if outcome == kind] for kind in ("survived", "broken")}
    for kind, names in kinds.items():
        for name in names:
            print(f"{kind}: {name}")
    noticed = len(outcomes) - sum(map(len, kinds.values()))
    print(
        f"{len(outcomes)} mutants: {noticed} noticed, {len(kinds['survived'])} survived, {len(kinds['broken'])} broken "
        f"({seconds:.0f} s)"
    )
    return 1 if noticed < len(outcomes) else 0


def main() -> int:
    """Try the faults that are asked for; the exit code is 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults to try; all of them by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trials side by side")
    options = parser.parse_args()
    started = time.monotonic()
    mutants = [mutant for mutant in read_mutants() if not options.names or mutant.name in options.names]
    complaints = [words for mutant in mutants if (words := mutant.complaint())]
    if complaints or not mutants:
        print("\n".join(complaints) or f"no mutant is called {', '.join(options.names)}")
        return 2
    # Before torch is imported: each trial is one of several processes.
    os.environ["OMP_NUM_THREADS"] = "1"
    import e3nn.o3  # noqa: F401
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    record = Record(state_of_checkout())
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(max(1, options.jobs))]
        without_faults(copies[0], mutants, record)
        outcomes = try_all(copies, mutants, record)
    return report(outcomes, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
