"""``make fuzz``: hostile content in every file that is read, hostile addresses, hostile values of every option.

Allowed are an error of Surgeon's own, in printable text of fewer than 700 characters, and the content as before. All
cases run in one process and follow from one seed; whoever fails is kept and can be run again by its number.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer

from surgeon import __version__
from surgeon.errors import SurgeonError
from surgeon.files.address import HubPath
from surgeon_cli.main import app
from tests.campaigns.mutations import VALUES, hostile_bytes
from tests.campaigns.readers import READERS, Reader, digest
from tests.campaigns.work import furnish, here, surgeon

LONGEST = 700
RECORD = Path(__file__).parent / "records" / "fuzz.json"
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect"}
ADDRESSES = ("hf://owner/net", "hf://owner/net@v1", "hf://owner/net@refs/pr/3/a/b.safetensors", "hf:/o/n@a%2Fb/c")
COMMANDS, AT_COMMAND = 0.06, 0.06
"""Shares of the cases that are options of commands, and addresses."""


@dataclass
class Outcome:
    """What became of the cases of one kind."""

    refused: int = 0
    same: int = 0
    other: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.refused + self.same + self.other + len(self.faults)


class Watch:
    """Counts what no reader may do: start a process, connect, or write outside a folder.

    Args:
        folder: where files may be written.
        stops: also raise, so that it does not come about, and take any name that a pickle looks up for such a try.
    """

    def __init__(self, folder: Path, stops: bool = False) -> None:
        self.folder, self.stops, self.seen, self.on = str(folder.resolve()), stops, list[str](), False
        self.forbidden = FORBIDDEN | ({"pickle.find_class"} if stops else set())
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        found = self._found(event, arguments) if self.on else ""
        if found:
            self.seen.append(found)
            if self.stops:
                raise PermissionError(found)

    def _found(self, event: str, arguments: tuple[Any, ...]) -> str:
        if event in self.forbidden:
            return f"{event} {str(arguments)[:100]}"
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[1], str):
            inside = str(Path(arguments[0]).absolute()).startswith(self.folder)
            return f"writes {arguments[0][:100]!r}" if set(arguments[1]) & set("wax+") and not inside else ""
        return ""


def judged(outcome: Outcome, call: Callable[[], Any], before: str | None, checked: bool, name: str) -> None:
    """Call a reader, and count what came of it; ``before`` is the digest of its content, None if it has none."""
    try:
        found = call()
        same = before is not None and digest(found) == before
    except SurgeonError as error:
        wrong = complaint(str(error))
        if wrong:
            outcome.faults.append(f"{name}: {wrong}")
        else:
            outcome.refused += 1
    except (Exception, RecursionError) as error:  # noqa: BLE001 (whatever comes is what is looked for)
        outcome.faults.append(f"{name}: {type(error).__name__}: {str(error)[:200]!a}")
    else:
        outcome.same += same
        outcome.other += not same and not checked
        if checked and not same:
            outcome.faults.append(f"{name}: another content was read, and nothing said")


def complaint(text: str) -> str:
    """Say what is wrong with a message; nothing if nothing is."""
    if not text.strip():
        return "no message"
    if len(text) >= LONGEST:
        return f"a message of {len(text):,} characters: {text[:150]!a}"
    bad = next((letter for letter in text if not letter.isprintable()), None)
    return f"the message holds {bad!a}: {text[:200]!a}" if bad is not None else ""


def options() -> list[tuple[str, str]]:
    """Return every option of every command that takes a value."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return [
        (name, parameter.opts[0])
        for name, command in sorted(commands.items())
        for parameter in command.params
        if name != "demo" and parameter.param_type_name == "option" and not parameter.is_flag
    ]


def command_case(outcome: Outcome, draw: random.Random, known: list[tuple[str, str]], name: str) -> None:
    """Give one option of a command a hostile value; the checkpoint is missing, so that nothing is computed."""
    command, option = draw.choice(known)
    values = [str(value) for value in VALUES if not isinstance(value, list | dict) and "\x00" not in str(value)]
    values = [value for value in values if len(value) < 100_000]  # longer arguments do not reach a process
    given = draw.choice([*values, "nan", "inf", "1e999", "9" * 5000, "{bad", "[1]", "{" * 3000, "a=b=c", "=", ","])
    code, out, err = surgeon(command, "missing.pt", f"{option}={given}")
    *_, last = err.strip("\n").split("\n")
    wrong = complaint(last)
    said = last.startswith("error: ") and "unexpected " not in last and "Traceback" not in err
    if not wrong and (code not in (1, 2) or not said):
        wrong = f"exit code {code}: {last[:200]!a} {out[-100:]!a}"
    if wrong:
        outcome.faults.append(f"{name} {command} {option}={given[:40]!a}: {wrong}")
    else:
        outcome.refused += 1


def address_case(outcome: Outcome, draw: random.Random, name: str) -> None:
    text = hostile_bytes(draw.choice(ADDRESSES).encode(), draw, 40).decode("utf-8", "surrogateescape")
    if draw.random() < 0.2:
        text += str(draw.choice(VALUES))
    judged(outcome, lambda: HubPath.parse(text), None, False, f"{name} {text[:60]!a}")


def campaign(cases: int, seed: int, only: str = "") -> Iterator[tuple[str, Outcome]]:
    """Run a campaign in the current folder; yield the kinds and what became of them."""
    readers = [reader for reader in READERS if only in reader.name and reader.available]
    shares = sum(reader.share for reader in readers) or 1
    rest = 1 - COMMANDS - AT_COMMAND
    for reader in readers:
        yield reader.name, attack(reader, int(cases * rest * reader.share / shares) + 1, seed)
    known = options()
    for kind, share, run in (
        ("values of options", COMMANDS, lambda *given: command_case(given[0], given[1], known, given[2])),
        ("addresses hf://", AT_COMMAND, address_case),
    ):
        outcome = Outcome()
        for number in range(int(cases * share) + 1 if only in kind else 0):
            run(outcome, random.Random(f"{seed} {kind} {number}"), f"{kind} #{number}")
        yield kind, outcome


def attack(reader: Reader, cases: int, seed: int) -> Outcome:
    """Attack one file so many times."""
    outcome, content, before = Outcome(), Path(reader.file).read_bytes(), digest(reader.read())
    for number in range(cases):
        hostile = reader.hostile(content, random.Random(f"{seed} {reader.name} {number}"))
        attacked(reader, hostile, before, outcome, f"{reader.name} #{number}")
    return outcome


def attacked(reader: Reader, hostile: bytes, before: str | None, outcome: Outcome, name: str) -> None:
    """Read a file with other content, and leave everything as it was."""
    path = Path(reader.file)
    kept = {path: path.read_bytes()}
    if reader.prepare is not None:  # which changes seals and certificates
        kept |= {file: file.read_bytes() for file in Path(path.parts[0]).glob("*.json")}
    path.write_bytes(hostile)
    if reader.prepare is not None:
        reader.prepare()
    judged(outcome, reader.read, before, reader.checked, name)
    for file, content in kept.items():
        file.write_bytes(content)


def run(cases: int, seed: int, furnished: Path | None = None, only: str = "") -> dict[str, Any]:
    """Furnish a folder, attack it, and return the record."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        shutil.copytree(furnished, folder) if furnished is not None else folder.mkdir()
        with here(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if furnished is None:
                furnish(folder)
            watch = Watch(folder)
            watch.on = True
            found = dict(campaign(cases, seed, only))
            watch.on = False
    faults = [fault for outcome in found.values() for fault in outcome.faults]
    return {
        "cases": sum(outcome.cases for outcome in found.values()),
        "seed": seed,
        "faults": faults,
        "executions": watch.seen,
        "kinds": {
            kind: {name: getattr(outcome, name) for name in ("cases", "refused", "same", "other")}
            for kind, outcome in found.items()
            if outcome.cases
        },
        "left out": [f"{reader.name}: {reader.needs} is missing" for reader in READERS if not reader.available],
        "seconds": round(time.process_time() - begun, 1),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    return {"equisurgeon": __version__, "torch": torch.__version__, "python": platform.python_version()}


def main() -> int:
    """Run the campaign, print what was found, and write the record if it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=21_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}, from which the page is made")
    parser.add_argument("--guided", metavar="KIND", help="attack this kind by atheris, guided by coverage, instead")
    parser.add_argument("--seconds", type=int, default=60, help="of the guided attack")
    given = parser.parse_args()
    if given.guided:
        if importlib.util.find_spec("atheris") is None:
            sys.exit(
                "expected the package atheris for an attack guided by coverage, but it is missing: pip install atheris"
            )
        os.execv(sys.executable, [sys.executable, "-m", "tests.campaigns.guided", given.guided, str(given.seconds)])
    record = run(given.cases, given.seed, only=given.only)
    for kind, counts in record["kinds"].items():
        print(f"{kind}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    for kind, count in Counter(_kind_of(fault) for fault in record["faults"]).most_common():
        print(f"FAULT {count} times: {kind}")
    print(f"{record['cases']:,} cases, {len(record['faults'])} faults, {record['seconds']} CPU seconds")
    if given.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if record["faults"] or record["executions"] else 0


def _kind_of(fault: str) -> str:
    name, _, what = fault.partition(": ")
    return f"{name.partition(' #')[0]}: {''.join('N' if letter.isdigit() else letter for letter in what)[:170]}"


if __name__ == "__main__":
    sys.exit(main())
