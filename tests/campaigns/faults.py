"""``make faults``: every call by which a command writes fails once, or its process is killed or meets another there.

The user's files also change at every call that reads them, the Hub at every request, and the clock goes back. After
each fault: the user's files are as they were; what was to be written is absent, as before, or complete, and nowhere
mixed; one sentence says what went wrong; whatever reads the place says what it is or refuses it; and the same command,
given again, gives the content that it gives without a fault, and leaves nothing else behind.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tests.campaigns.children import Ended, Place, Words, loopback
from tests.campaigns.fuzz import complaint, versions
from tests.campaigns.injection import (
    CHANGES,
    CLOCK,
    ERRNOS,
    MEETING,
    PUSHED,
    RIVAL,
    SIGNALS,
    SOURCE,
    TRAINED,
    Injector,
    other_version,
)
from tests.campaigns.stage import EXECUTED, Stage, content_of, files_in, remove
from tests.campaigns.work import here
from tests.campaigns.writers import COMMANDS, READERS

RECORD = Path(__file__).parent / "records" / "faults.json"
FAULTS: tuple[int | str, ...] = (*ERRNOS, *SIGNALS, MEETING, CLOCK)
SAVED = (".surgeon-complete",)
"""A save that is complete, and is put in its place by whoever comes next."""
Content = Mapping[str, str]


@dataclass(frozen=True)
class Point:
    """A fault at one call of a command.

    Attributes:
        at: number of the call, from 1.
        call: its name, and the file that it is about.
        process: rank of the process that makes it.
        inputs: what the user gave, if calls that read it are counted.
        first: whether it is the first one that reads its file.
    """

    at: int
    fault: int | str
    call: str
    process: int = 0
    inputs: tuple[str, ...] = ()
    first: bool = False

    @property
    def word(self) -> str:
        return errno.errorcode[self.fault] if isinstance(self.fault, int) else self.fault

    @property
    def file(self) -> str:
        return self.call.partition(" ")[2]


@dataclass
class Outcome:
    """What became of the points of one command, and which faults they were."""

    points: int = 0
    absent: int = 0
    before: int = 0
    complete: int = 0
    other: int = 0
    unfinished: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    faults: list[str] = field(default_factory=list)


class Attack:
    """Strikes one command, again and again.

    Args:
        stage: the folder.
        name: of the command.
        seed: of the choice of points.
    """

    def __init__(self, stage: Stage, name: str, seed: int) -> None:
        self.stage, self.name, self.command, self.outcome = stage, name, COMMANDS[name], Outcome()
        self.draw, self.others = random.Random(f"{seed} {name}"), dict[str, Content | None]()

    def run(self, count: int) -> Outcome:
        """Strike so many times."""
        with here(self.stage.work.parent, self.stage.home):
            points = list(self.points())
            for point in self.chosen(points)[:count]:
                if point.fault in (RIVAL, SOURCE, *CHANGES):
                    self.other(point)
                before = self.stage.fresh(self.command)
                with loopback(self.stage.hubs.get(self.command.hub)) as endpoint:
                    self.place = Place(self.stage.work, endpoint)
                    where = f"{self.name}, {point.word} at call {point.at} ({point.call})"
                    where += f" of process {point.process}" if self.command.processes > 1 else ""
                    self.outcome.faults += [f"{where}: {each}" for each in self.struck(point, before)]
        return self.outcome

    def points(self) -> Iterator[Point]:
        """Run the command without a fault, keep what it writes, and yield all that can be done to it."""
        command, work = self.command, str(self.stage.work)
        for rank in range(command.processes):
            self.expected, calm = self.calm(Injector(work, workers=command.workers, process=rank))
            faults = [*FAULTS, *([RIVAL] if command.rival else [])] if command.processes == 1 else [*SIGNALS, CLOCK]
            for at, call in enumerate(calm.calls, 1):
                for fault in faults:
                    if not (call.startswith(TRAINED) and isinstance(fault, int)):
                        yield Point(at, fault, call, rank)
                if command.hub == PUSHED and call.startswith("send"):
                    yield Point(at, SOURCE, call)
        if command.processes > 1:
            return
        inputs = tuple(self.stage.fresh(command))
        calls, seen = self.calm(Injector(work, workers=command.workers, inputs=inputs))[1].calls, set[str]()
        for at, call in enumerate(calls, 1):
            for fault in CHANGES:
                point = Point(at, fault, call, 0, inputs, call.partition(" ")[2] not in seen)
                if other_version(work, point.file).exists() and not point.file.endswith("notes.txt"):
                    yield point
            seen.add(call.partition(" ")[2])

    def chosen(self, points: Sequence[Point]) -> list[Point]:
        """Return the points in an order in which every kind of fault comes as often as there are points of it."""
        by_word = defaultdict(list)
        for point in self.draw.sample(points, len(points)):
            by_word[point.word].append(point)
        return [point for turn in zip_longest(*by_word.values()) for point in turn if point]

    def calm(self, injector: Injector | None = None, *, words: Words = (), hub: str = "", change: str = "") -> Any:
        """Run the command without a fault, with further words, on another Hub or with another version of a file.

        Returns:
            What it has written, None if it was refused; and how it ended.
        """
        self.stage.fresh(self.command)
        if change:
            name = self.stage.work / change
            name.write_bytes(other_version(self.stage.work, change).read_bytes())
        with loopback(self.stage.hubs.get(hub or self.command.hub)) as endpoint:
            self.place = Place(self.stage.work, endpoint)
            ended = self.ended((*self.command.given, *words), injector)
            if ended.code and not change:
                sys.exit(f"{self.name} {' '.join(words)}: {ended.out}")
            self.fetch()
            return (None if ended.code else self.stage.content(self.command)), ended

    def other(self, point: Point) -> Content:
        """Return the content that another process, Hub or file gives; nothing if there is none, or it is refused."""
        return self._other(point) or {}

    def _other(self, point: Point) -> Content | None:
        name = point.file if point.fault in CHANGES else point.word
        if name not in self.others and point.fault in (RIVAL, SOURCE, *CHANGES):
            rival, source = point.fault == RIVAL, point.fault == SOURCE
            given: dict[str, Any] = {"words": self.command.rival if rival else (), "hub": "other" if source else ""}
            self.others[name] = self.calm(change="" if rival or source else name, **given)[0]
        return self.others.get(name, {})

    def ended(self, words: Words, injector: Injector | None = None) -> Ended:
        if self.command.processes > 1:
            return self.place.group(words, self.command.processes, injector or Injector(str(self.stage.work), -1))
        return self.place.run(words, injector=injector)

    def struck(self, point: Point, before: Content) -> list[str]:
        """Strike once, and return what is wrong then."""
        command, stage, outcome = self.command, self.stage, self.outcome
        usual, old = (*SAVED, *stage.hidden()), content_of(stage.work / command.target) if command.old else {}
        outcome.points += 1
        outcome.kinds[point.word] += 1
        injector = Injector(str(stage.work), point.at, point.fault, command.workers, point.process, point.inputs)
        if point.fault in (MEETING, RIVAL):
            words = (*command.given, *command.rival) if point.fault == RIVAL else self.meets()
            both = self.place.met(command.given, injector, words)
            # one that verifies may find that what stands there is no clean folder
            wrong = [*sayings(both[0], point), *sayings(both[1], point, (0, 1))]
            if all(one.code for one in both):
                wrong.append(f"neither of two processes came to an end: {both[0].out[-200:]!a}, {both[1].out[-200:]!a}")
        else:
            ended = self.ended(command.given, injector)
            well = (0, 1) if command.given[0] == "verify" else (0,)
            wrong = [*sayings(ended, point, well, command.processes)]
            if point.first and point.fault != "cut off" and not ended.code and self._other(point) is None:
                wrong.append("what is refused otherwise was taken")
        self.tidy()
        for name in before if point.fault in CHANGES else ():
            stage.put_back(name)
        self.fetch()
        wrong += self.found(point, before, old)
        # where a worker fails, the others are killed
        if isinstance(point.fault, int) and not (command.workers or point.call.startswith(("unlink", "rmdir"))):
            wrong += [f"left {left}" for left in stage.hidden() if left not in usual][:1]
        return [*wrong, *self.readings(), *self.again(point, before)]

    def meets(self) -> Words:
        """Return what another process does meanwhile: the same, or it reads what is being written."""
        reader, *more = self.draw.choice((("",), *READERS))
        return (reader, self.command.target, *more) if reader else self.command.given

    def fetch(self) -> None:
        """Bring what was written on the Hub to the target, if anything is there."""
        if self.command.fetched:
            remove(self.stage.work / self.command.target)
            self.place.run(self.command.fetched)

    def tidy(self) -> None:
        for left in ("read", "read.html"):
            remove(self.stage.work / left)

    def found(self, point: Point, before: Content, old: Content) -> Iterator[str]:
        """Find fault with what is there now, and count what it is."""
        command, outcome = self.command, self.outcome
        now, target = files_in(self.stage.work), self.stage.work / command.target
        lost = [name for name in before if now.get(name) != before[name]]
        if lost:
            yield f"the user's {lost[0]} was changed or lost"
        if EXECUTED in now and not (point.first and "--task" in command.given):  # what is there at first is given
            yield "code was run that nobody allowed"
        if not target.exists():
            outcome.absent += 1
            if command.old and not any(".surgeon-backup" in name for name in now):
                yield "the old folder is gone"
            return
        found, whole = content_of(target), []
        for content in (self.expected, self.other(point)):
            here = {name: digest for name, digest in content.items() if name.split("/")[0] == command.target}
            part = bool(found) and all(here.get(name) == digest for name, digest in found.items())
            whole.append(part and (command.target.endswith(".json") or len(found) == len(here)))
        if old and found == old:
            outcome.before += 1
        elif whole[0]:
            outcome.complete += 1
        elif whole[1]:
            outcome.other += 1
        elif command.goes_on:
            outcome.unfinished += 1
        else:
            yield f"the target is neither the old nor the new one, or not all of it: {sorted(found)[:5]}"

    def readings(self) -> Iterator[str]:
        """Give the target, as it was left, to all commands that read it."""
        if not (self.stage.hidden() or (self.stage.work / self.command.target).exists()):
            return
        ended = self.place.run(*((reader, self.command.target, *more) for reader, *more in READERS))
        if ended.code not in (0, 1, 2) or "Traceback" in ended.out or "unexpected " in ended.out:
            yield f"a reader afterwards: exit code {ended.code}: {ended.out[-300:]!a}"
        self.tidy()

    def again(self, point: Point, before: Content) -> Iterator[str]:
        """Give the same command again: it has to come to what it comes to without a fault."""
        other = self.other(point)
        if other and self.stage.content(self.command) == other != self.expected and not self.command.old:
            self.stage.clear(self.command)  # of another process or source, which are not replaced unasked
        ended = self.ended(self.command.given)
        there = ended.code == 2 and "exists already" in ended.out
        if ended.code and not there:
            yield f"again: exit code {ended.code}: {ended.out[-300:]!a}"
            return
        self.fetch()
        found, wanted = self.stage.content(self.command), other if point.fault == SOURCE else self.expected
        if found not in (wanted, self.expected):
            different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            yield f"again: other content, first {different[:3]}"
        now = files_in(self.stage.work)
        lost = [name for name in before if now.get(name) != before[name]]
        if lost:
            yield f"again: the user's {lost[0]} was changed or lost"
        if self.stage.hidden():
            yield f"again: {self.stage.hidden()[0]} is left"


def sayings(ended: Ended, point: Point, well: Sequence[int] = (0,), processes: int = 1) -> Iterator[str]:
    """Find fault with how a command ended; every process of a group may say a sentence."""
    if "Traceback" in ended.out:
        yield f"a traceback: {ended.out[-300:]!a}"
    elif ended.code < 0 and point.word.startswith(("SIGKILL", "SIGTERM")):
        return
    elif ended.code == 2 and point.fault != CLOCK:
        wrong = [complaint(line) for line in ended.errors]
        if not 1 <= len(ended.errors) <= processes:
            wrong.append("not one sentence")
        if "unexpected " in ended.out:
            wrong.append("called unexpected")
        yield from (f"{each}: {ended.out[-300:]!a}" for each in wrong if each)
    elif ended.code not in well:
        yield f"exit code {ended.code}: {ended.out[-200:]!a}"


def run(points: int, seed: int, jobs: int, only: str = "") -> dict[str, Any]:
    """Run the campaign in so many processes, and return the record."""
    begun, names = time.monotonic(), [name for name in COMMANDS if not only or name in only.split(";")]
    shares = sum(COMMANDS[name].share for name in names)
    with tempfile.TemporaryDirectory() as folder:
        parts = [names[job::jobs] for job in range(jobs)]
        children = {_started(Path(folder), job, part, points, shares, seed): job for job, part in enumerate(parts)}
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            sys.exit(f"a part of the campaign ended with {codes}")
        found = {}
        for job in range(jobs):
            found |= json.loads((Path(folder) / f"{job}.json").read_text())
    spent = os.times()
    kinds = sum((Counter(outcome.pop("kinds")) for outcome in found.values()), Counter[str]())
    return {
        "points": sum(outcome["points"] for outcome in found.values()),
        "seed": seed,
        "faults": [fault for outcome in found.values() for fault in outcome.pop("faults")],
        "commands": {name: found[name] for name in names},
        "kinds": dict(sorted(kinds.items())),
        "CPU seconds": round(spent.children_user + spent.children_system, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "versions": versions(),
    }


def _started(folder: Path, job: int, names: Sequence[str], points: int, shares: int, seed: int) -> int:
    """Fork a process that attacks some of the commands."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        place = folder / str(job)
        place.mkdir()
        stage = Stage(place)
        stage.furnish(names)
        found = {}
        for name in names:
            begun = time.monotonic()
            outcome = Attack(stage, name, seed).run(max(1, points * COMMANDS[name].share // shares))
            found[name] = vars(outcome)
            counts = ", ".join(f"{count} {what}" for what, count in found[name].items() if isinstance(count, int))
            print(f"{name}: {counts}, {len(outcome.faults)} faults, {time.monotonic() - begun:.0f} s", flush=True)
        (folder / f"{job}.json").write_text(json.dumps(found))
        code = 0
    except BaseException:  # noqa: BLE001 (the process ends here)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> int:
    """Run the campaign, print what was found, and write the record if it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="commands, with semicolons between them")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}, from which the page is made")
    given = parser.parse_args()
    record = run(given.points, given.seed, given.jobs, given.only)
    for fault, count in Counter(record["faults"]).most_common():
        print(f"FAULT {count} times: {fault}")
    print(f"{record['points']} points, {len(record['faults'])} faults, {record['CPU seconds']} CPU seconds")
    if given.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if record["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
