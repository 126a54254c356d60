"""``make faults``: every call by which a command writes fails once, or its process is killed or meets another there.

After each fault: the user's files are as they were; what was to be written is absent, as before, or complete; one
sentence says what went wrong; whatever reads the place says what it is or refuses it; and the same command, given
again, gives the content that it gives without a fault, and leaves nothing else behind.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.fuzz import complaint, versions
from tests.campaigns.injection import MEETING, SIGNALS, Ended, Injector, forked, loopback, settle
from tests.campaigns.work import begin, here, surgeon
from tests.campaigns.writers import COMMANDS, FOREIGN, TRAIN, Command
from tests.cli.sweeps import optimised_once
from tests.hub.client import OWNER_TOKEN, USERS, point_client_at
from tests.hub.server import Hub
from tests.hub.store import Store

RECORD = Path(__file__).parent / "records" / "faults.json"
ERRNOS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EINTR)
FAULTS: tuple[int | str, ...] = (*ERRNOS, *SIGNALS, MEETING)
SAVED = (".surgeon-complete",)
"""A save that is complete, and is put in its place by whoever comes next."""


@dataclass
class Outcome:
    """What became of the points of one command."""

    points: int = 0
    absent: int = 0
    before: int = 0
    complete: int = 0
    unfinished: int = 0
    faults: list[str] = field(default_factory=list)


def files_in(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def content_of(path: Path) -> dict[str, str]:
    """Return what was written, by name, without times and what follows from them."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    found = {}
    for file in files:
        name = str(file.relative_to(path.parent))
        if file.suffix in (".json", ".jsonl") and file.name != "surgeon_seal.json":
            lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            text = json.dumps([timeless(json.loads(line)) for line in lines], sort_keys=True)
            found[name] = hashlib.sha256(text.encode()).hexdigest()
        elif file.name not in ("surgeon_seal.json", "CERTIFICATE.md", "README.md", "notes.txt"):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def places_of(command: Command) -> tuple[str, ...]:
    """Return what a command writes: of a comparison also its finished runs, and the weights that it keeps."""
    stem, end = os.path.splitext(command.target)
    return (command.target, f"{stem}.runs", stem) if end == ".json" else (command.target,)


def timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: timeless(part) for key, part in data.items() if key not in ("seconds", "sha256", "files")}
    return [timeless(part) for part in data] if isinstance(data, list) else data


class Campaign:
    """Commands in a folder that is made anew for every point; always at the same place, which the files name.

    Args:
        folder: for everything.
        seed: of the choice of points.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.work, self.kept, self.seed, self.hubs = folder / "work", folder / "kept", seed, dict[str, Store]()

    def furnish(self, names: Sequence[str]) -> None:
        """Make what some of the commands find, run once what imports more than others, and keep that."""
        self.work.mkdir()
        optimised_once()
        with here(self.work):
            begin(self.work)
            for command in (("relax", "net.pt"), ("finetune", "net-relaxed", *TRAIN)):
                self._once(*command)
            for name in {"strip", *names} & {"strip", "export --container", "export --pt2", "export --onnx"}:
                self._once(*COMMANDS[name].given)
                shutil.rmtree("new")
            if {"push", "pull", "pull --force"} & {*names}:
                self._fill_hub()
        settle()
        with here(self.work):
            for name in {"resume", "compare again"} & {*names}:
                self._half_way(COMMANDS[name])
        for name in FOREIGN:
            (self.work / name).parent.mkdir(exist_ok=True, parents=True)
            (self.work / name).write_text("mine")
        shutil.copytree(self.work, self.kept)

    def _once(self, *command: str) -> None:
        code, _, err = surgeon(*command)
        if code:
            sys.exit(f"{' '.join(command)}: {err}")

    def _fill_hub(self) -> None:
        """Upload a run, and bring it back, so that the client is imported."""
        hub = Hub(dict(USERS))
        with pytest.MonkeyPatch.context() as patch, point_client_at(hub, self.work / "hf-home", OWNER_TOKEN, patch):
            self._once(*COMMANDS["push"].given)
            self._once(*COMMANDS["pull"].given)
        hub.close()
        for name in ("new", "hf-home"):
            shutil.rmtree(name)
        self.hubs = {"run": hub.store, "empty": Store()}

    def _half_way(self, command: Command) -> None:
        """Kill a training after half of its calls."""
        before = {path.name for path in self.work.iterdir()}
        count = len(forked(self.work, command.given, Injector(str(self.work)))[0].calls)
        for name in {path.name for path in self.work.iterdir()} - before:
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
        forked(self.work, command.given, Injector(str(self.work), count // 2, "SIGKILL before"))
        missing = [name for name in command.needs if not Path(name).is_dir()]
        if missing:
            sys.exit(f"expected {missing[0]}, of a training that was killed half-way, to be there")

    def fresh(self, command: Command) -> dict[str, str]:
        """Put the folder back, and return the hashes of the user's files, which no command may change."""
        shutil.rmtree(self.work, ignore_errors=True)
        wanted = {"net.pt", "task.py", "notes.txt", *command.needs, *(["old"] if command.old else [])}
        self.work.mkdir()
        for name in sorted(wanted):
            place = self.kept / name
            shutil.copytree(place, self.work / name) if place.is_dir() else shutil.copy2(place, self.work / name)
        for lock in self.kept.glob(".*.surgeon-*"):
            if any(lock.name.startswith(f".{name}.") for name in (*command.needs, command.target)):
                shutil.copy2(lock, self.work / lock.name)
        return {name: digest for name, digest in files_in(self.work).items() if self.users(command, name)}

    @staticmethod
    def users(command: Command, name: str) -> bool:
        """Tell whether a file is not the command's to change: all but the target, and foreign ones in a run."""
        inside = name.split("/")[0] in places_of(command) or name.startswith(f".{Path(command.target).stem}.")
        return not inside or (not command.old and name.endswith("notes.txt"))

    def attack(self, name: str, count: int) -> Outcome:
        """Run one command with so many faults."""
        command, outcome, draw = COMMANDS[name], Outcome(), random.Random(f"{self.seed} {name}")
        with here(self.work.parent, self.work.parent / "home"):
            self.fresh(command)
            with loopback(self.hubs.get(command.hub)) as self.endpoint:
                calm = self.run(command.given, Injector(str(self.work), workers=command.workers))
                if calm.code:
                    sys.exit(f"{name}: {calm.out}")
                self.fetch(command)
                expected = self.content(command)
            points = [(at, fault) for at in range(1, len(calm.calls) + 1) for fault in FAULTS]
            for at, fault in draw.sample(points, min(count, len(points))):
                where = f"{name}, {_word(fault)} at call {at} ({calm.calls[at - 1]})"
                before = self.fresh(command)
                with loopback(self.hubs.get(command.hub)) as self.endpoint:
                    wrong = self.point(command, before, expected, (at, fault, calm.calls[at - 1]), draw, outcome)
                    outcome.faults += [f"{where}: {each}" for each in wrong]
        return outcome

    def run(self, words: Sequence[str], injector: Injector | None = None) -> Ended:
        return forked(self.work, words, injector, self.endpoint)[0]

    def point(
        self,
        command: Command,
        before: dict[str, str],
        expected: dict[str, str],
        strike: tuple[int, int | str, str],
        draw: random.Random,
        outcome: Outcome,
    ) -> list[str]:
        """Strike once, and return what is wrong then."""
        at, fault, call = strike
        usual = (*SAVED, *self.hidden())
        old = content_of(self.work / command.target) if command.old else {}
        outcome.points += 1
        meets = self.other(command, draw) if fault == MEETING else ()
        ended = forked(
            self.work, command.given, Injector(str(self.work), at, fault, command.workers), self.endpoint, meets
        )
        wrong = [*self.sayings(ended[0], fault)]
        for one in ended[1:]:  # one that verifies may find that what stands there is no clean folder
            wrong += self.sayings(one, fault, (0, 1) if meets != command.given else (0,))
        self.tidy()
        self.fetch(command)
        wrong += self.place(command, before, old, expected, outcome)
        # where a worker fails, the others are killed
        if isinstance(fault, int) and not (command.workers or call.startswith(("unlink", "rmdir"))):
            wrong += [f"left {left}" for left in self.hidden() if left not in usual][:1]
        if fault == MEETING and all(one.code for one in ended):
            wrong.append(f"neither of two processes came to an end: {ended[0].out[-200:]!a}, {ended[1].out[-200:]!a}")
        wrong += self.readings(command, draw) if outcome.points % 3 == 0 else []
        return [*wrong, *self.again(command, before, expected)]

    def other(self, command: Command, draw: random.Random) -> tuple[str, ...]:
        """Return what another process does meanwhile: the same, or it reads what is being written."""
        reader, *more = draw.choice((("",), *command.readers))
        return (reader, command.target, *more) if reader else command.given

    def content(self, command: Command) -> dict[str, str]:
        places = [self.work / name for name in places_of(command)]
        return {name: digest for place in places if place.exists() for name, digest in content_of(place).items()}

    def fetch(self, command: Command) -> None:
        """Bring what was written on the Hub to the target, if anything is there."""
        if command.fetched:
            shutil.rmtree(self.work / command.target, ignore_errors=True)
            self.run(command.fetched)

    def hidden(self) -> list[str]:
        return [path.name for path in self.work.rglob(".*") if "surgeon" in path.name]

    def tidy(self) -> None:
        for left in (self.work / "read", self.work / "read.html"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def sayings(self, ended: Ended, fault: int | str, well: Sequence[int] = (0,)) -> Iterator[str]:
        """Find fault with how a command ended."""
        if "Traceback" in ended.out:
            yield f"a traceback: {ended.out[-300:]!a}"
        elif ended.code < 0 and str(fault).startswith(("SIGKILL", "SIGTERM")):
            return
        elif ended.code == 2:
            wrong = [complaint(line) for line in ended.errors] if len(ended.errors) == 1 else ["not one sentence"]
            if "unexpected " in ended.out:
                wrong.append("called unexpected")
            yield from (f"{each}: {ended.out[-300:]!a}" for each in wrong if each)
        elif ended.code not in well:
            yield f"exit code {ended.code}: {ended.out[-200:]!a}"

    def place(
        self, command: Command, before: dict[str, str], old: dict[str, str], expected: dict[str, str], outcome: Outcome
    ) -> Iterator[str]:
        """Find fault with what is there now, and count what it is."""
        now, target = files_in(self.work), self.work / command.target
        lost = [name for name in before if now.get(name) != before[name]]
        if lost:
            yield f"the user's {lost[0]} was changed or lost"
        if not target.exists():
            outcome.absent += 1
            if command.old and not any(".surgeon-backup" in name for name in now):
                yield "the old folder is gone"
            return
        found = content_of(target)
        if old and found == old:
            outcome.before += 1
        elif found and all(expected.get(name) == digest for name, digest in found.items()):
            complete = len(found) == len([name for name in expected if name.startswith(f"{command.target}/")])
            outcome.complete += 1
            if command.target.endswith(".json") or complete or command.goes_on:
                return
            yield "the target is there in part"
        elif command.goes_on:
            outcome.unfinished += 1
        else:
            yield f"the target is neither the old nor the new one: {sorted(found)[:5]}"

    def readings(self, command: Command, draw: random.Random) -> Iterator[str]:
        """Give the target, as it was left, to a command that reads it."""
        if not command.readers or not (self.work / command.target).exists():
            return
        reader, *more = draw.choice(command.readers)
        ended = self.run((reader, command.target, *more))
        if ended.code not in (0, 1, 2) or "Traceback" in ended.out or "unexpected " in ended.out:
            yield f"{reader} afterwards: exit code {ended.code}: {ended.out[-300:]!a}"
        self.tidy()

    def again(self, command: Command, before: dict[str, str], expected: dict[str, str]) -> Iterator[str]:
        """Give the same command again: it has to come to what it comes to without a fault."""
        ended = self.run(command.given)
        there = ended.code == 2 and "exists already" in ended.out
        if ended.code and not there:
            yield f"again: exit code {ended.code}: {ended.out[-300:]!a}"
            return
        self.fetch(command)
        found = self.content(command)
        if found != expected:
            different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            yield f"again: other content, first {different[:3]}"
        now = files_in(self.work)
        lost = [name for name in before if now.get(name) != before[name]]
        if lost:
            yield f"again: the user's {lost[0]} was changed or lost"
        if self.hidden():
            yield f"again: {self.hidden()[0]} is left"


def _word(fault: int | str) -> str:
    return errno.errorcode[fault] if isinstance(fault, int) else fault


def run(points: int, seed: int, jobs: int, only: str = "") -> dict[str, Any]:
    """Run the campaign in so many processes, and return the record."""
    begun, names = time.monotonic(), [name for name in COMMANDS if not only or name in only.split(",")]
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
    return {
        "points": sum(outcome["points"] for outcome in found.values()),
        "seed": seed,
        "faults": [fault for outcome in found.values() for fault in outcome.pop("faults")],
        "commands": {name: found[name] for name in names},
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
        campaign = Campaign(place, seed)
        campaign.furnish(names)
        found = {}
        for name in names:
            outcome = campaign.attack(name, max(1, points * COMMANDS[name].share // shares))
            found[name] = vars(outcome)
            counts = ", ".join(f"{count} {what}" for what, count in found[name].items() if isinstance(count, int))
            print(f"{name}: {counts}, {len(outcome.faults)} faults", flush=True)
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
    parser.add_argument("--only", default="", help="commands, with commas between them")
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
