"""How often what a command is given goes from room to room, traced, and as docs/architecture.md lists it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from surgeon.files.address import is_hub_path
from surgeon.files.reading import open_checkpoint
from tests.commands import Surgeon
from tests.test_import_order import PACKAGES, ROOMS

ORDER = (*ROOMS, "cli")
TEXT = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
PATH = ("relax", "net.pt", "--task", "task.py", "--out", "net-relaxed")
TRAIN = ("finetune", "net-relaxed", "--out", "net-run", "--epochs", "1", "--lr", "1e-3")
STRIP = ("strip", "net-run", "--out", "net-clean", *("--elements", "1", "--batches", "1"))
VERIFY = ("verify", "net-clean", "--against", "net.pt")


def room_and_file(path: str) -> tuple[str, str] | None:
    """The room that a file of the engine or the command line lies in, and its place there."""
    for package, folder in PACKAGES.items():
        if path.startswith(f"{folder / package}/"):
            room, _, rest = path.removeprefix(f"{folder / package}/").partition("/")
            return ("cli", f"{room}/{rest}") if package == "surgeon_cli" else (room.removesuffix(".py"), rest)
    return None


def holds(value: Any, paths: set[Path], depth: int = 2) -> bool:
    """Whether a value is one of the paths, something in such a folder, or an object of fields that holds one."""
    if isinstance(value, str | Path):
        place = Path(value).absolute()
        return not paths.isdisjoint({place, *place.parents})
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return depth > 0 and any(holds(getattr(value, each.name, None), paths, depth - 1) for each in fields)


def followed(run: Callable[[], Any], *names: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the rooms that paths pass, with the files there, in the order in which functions are called.

    Followed are the functions that are given one, or an object that holds one, and give something made of it; what only
    answers yes, no or a word, and a method of such an object, is asked on the way. A function counts once.
    """
    paths = {Path(name).absolute() for name in names}
    entered: dict[FrameType, int] = {}
    passed: dict[int, tuple[str, str]] = {}
    seen = set[Any]()

    def watch(frame: FrameType, event: str, result: Any) -> None:
        code = frame.f_code
        place = room_and_file(code.co_filename) if event in ("call", "return") else None
        if place is None or code.co_name.startswith("<"):
            return
        if event == "call":
            given = {name: frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]}
            if code not in seen and "self" not in given and any(holds(value, paths) for value in given.values()):
                entered[frame] = len(seen)
                seen.add(code)
        elif frame in entered:
            number = entered.pop(frame)
            if (result is not None and not isinstance(result, bool | str)) or place[0] == "cli":
                passed[number] = place

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    for room, places in groupby((passed[number] for number in sorted(passed)), key=lambda place: place[0]):
        yield room, {Path(file).name for _, file in places}


def listed(command: str) -> list[tuple[str, set[str]]]:
    """The rooms of a journey, and the files that are named there, as the page lists them."""
    text = TEXT.split(f"given to `surgeon {command}`")[1].split("\n\n")[1]
    steps = re.findall(r"^\d+\. `(\w+)`( ↑)?: (.*(?:\n   .*)*)", text, re.MULTILINE)
    climbs = [ORDER.index(b[0]) > ORDER.index(a[0]) for a, b in pairwise(steps)]
    assert [bool(arrow) for _, arrow, _ in steps[1:]] == climbs
    return [(room, {Path(name).name for name in re.findall(r"`([\w/]+\.py)`", words)}) for room, _, words in steps]


@pytest.mark.slow
def test_paths_pass_rooms_as_the_page_lists_them(surgeon: Surgeon) -> None:
    """Nine rooms and four climbs at most for a training, seven and three for a folder that is verified."""
    surgeon.once(*PATH)
    training = list(followed(lambda: surgeon(*TRAIN), "net-relaxed"))
    surgeon(*STRIP)
    verifying = list(followed(lambda: surgeon(*VERIFY), "net-clean"))
    for command, found, rooms, climbs in (("finetune", training, 9, 4), ("verify", verifying, 7, 3)):
        places, described = [ORDER.index(room) for room, _ in found], listed(command)
        assert len(places) <= rooms
        assert sum(after > before for before, after in pairwise(places)) <= climbs
        assert [room for room, _ in described] == [room for room, _ in found]
        assert all(names <= files for (_, names), (_, files) in zip(described, found, strict=True))


def test_only_what_makes_something_of_a_path_is_passed(surgeon: Surgeon) -> None:
    asked = list(followed(lambda: is_hub_path("net.pt"), "net.pt"))
    opened = list(followed(lambda: open_checkpoint("net.pt"), "net.pt"))
    assert asked == []
    assert [room for room, _ in opened] == ["files"]
    assert "reading.py" in opened[0][1]
    assert list(followed(lambda: open_checkpoint("net.pt"), "another.pt")) == []
