"""Finished runs as JSON lines: one for each, with what decides it and where it was made; a table goes on from them."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.support.plain import read_plain
from surgeon.support.versions import machine, versions
from surgeon.training.comparison import Comparison, outcome_of
from surgeon.training.outcomes import ArmRun, Execute, Failure, Outcome, Point
from surgeon.training.progress import Progress, StepEvent

RESULTS = Path(__file__).parent / "results"
BESIDE = "beside"
"""Key in a context of another network than the rest of it is about: its name, and the numbers of weights of both."""


def commit() -> str:
    """Return the commit of the checkout, with a + if files have changed since, apart from the lines themselves."""

    def git(*told: str) -> str:
        found = subprocess.run(["git", *told], cwd=RESULTS.parent, check=True, capture_output=True, text=True)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS.name}")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def read_lines(path: Path) -> Sequence[Mapping[str, Any]]:
    """Return all lines of a file; none if it is not there yet."""
    return _parsed(path.read_text(encoding="utf-8")) if path.is_file() else ()


@functools.lru_cache(16)
def _parsed(text: str) -> Sequence[Mapping[str, Any]]:
    """Return what the lines hold; kept, because every comparison in a file looks for its own among all."""
    return tuple(json.loads(line) for line in text.splitlines() if line)


class StepClock(Progress):
    """Measures what the steps of a run take in seconds of this process, without the evaluations between epochs."""

    def __init__(self) -> None:
        self._epoch, self._last = -1, 0.0
        self._seconds: list[float] = []

    def step(self, event: StepEvent) -> None:
        """Take up a step; that before the first one of an epoch is not known."""
        now = time.process_time()
        if event.epoch == self._epoch:
            self._seconds.append(now - self._last)
        self._epoch, self._last = event.epoch, now

    @property
    def mean(self) -> float | None:
        """Mean over the steps; None if every epoch has one step only."""
        return statistics.fmean(self._seconds) if self._seconds else None


class Lines(MutableMapping[Point, Outcome]):
    """The runs in a file of JSON lines that belong to one comparison; a new one is appended as soon as it is there.

    Args:
        path: the file.
        context: JSON-compatible; what decides a run besides arm, learning rate and seed. Other lines are left alone.
    """

    def __init__(self, path: Path, context: Mapping[str, Any]) -> None:
        self.path, self.context = path, json.loads(json.dumps(context))
        self.cpu_seconds: dict[Point, float] = {}
        self.step_times: dict[Point, float] = {}
        self.step_seconds: dict[str, float] = {}
        self._runs: dict[Point, Outcome] = {}
        for line in read_lines(path):
            if line["context"] == self.context and "step_seconds" in line:
                self.step_seconds = line["step_seconds"]
            elif line["context"] == self.context:
                kind: type[ArmRun] | type[Failure] = ArmRun if "validation" in line["outcome"] else Failure
                point = Point(**line["point"])
                self._runs[point] = read_plain(line["outcome"], kind, "a finished run", ValueError)
                self.cpu_seconds[point] = line["cpu_seconds"]
                if line.get("seconds_per_step") is not None:
                    self.step_times[point] = line["seconds_per_step"]

    def __setitem__(self, point: Point, outcome: Outcome) -> None:
        found = {"point": dataclasses.asdict(point), "outcome": dataclasses.asdict(outcome)}
        times = {"cpu_seconds": self.cpu_seconds.get(point), "seconds_per_step": self.step_times.get(point)}
        self._append({**found, **times})
        self._runs[point] = outcome

    def keep_step_seconds(self, seconds: Mapping[str, float]) -> None:
        """Keep what a step of each arm takes, in seconds of the processor."""
        self.step_seconds = dict(seconds)
        self._append({"step_seconds": self.step_seconds})

    def _append(self, found: Mapping[str, Any]) -> None:
        made = {"commit": commit(), "versions": versions(), "machine": machine()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"context": self.context, **found, **made}) + "\n")

    def __getitem__(self, point: Point) -> Outcome:
        return self._runs[point]

    def __delitem__(self, point: Point) -> None:
        raise TypeError("lines are only added")

    def __iter__(self) -> Iterator[Point]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def execute(self, comparison: Comparison) -> Execute:
        """Return how to carry runs out one after the other, timed in seconds of this process."""

        def execute(points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
            for point in points:
                began, clock = time.process_time(), StepClock()
                _, outcome = outcome_of(comparison, point, clock)
                self.cpu_seconds[point] = time.process_time() - began
                if clock.mean is not None:
                    self.step_times[point] = clock.mean
                words = outcome.message if isinstance(outcome, Failure) else (outcome.test or outcome.validation)
                print(f"{point}: {words}, {self.cpu_seconds[point]:.1f} s", flush=True)
                yield point, outcome

        return execute
