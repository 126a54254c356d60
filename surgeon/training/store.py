"""Finished runs of a comparison in a folder, one small file each, so that the same command can go on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, ExistsError, UsageError, WriteError
from surgeon.files.atomic import atomic_folder, check_writable, remove_entry
from surgeon.files.content import json_compatible, write_json
from surgeon.files.ordinary import bytes_of
from surgeon.support.plain import parse_json, read_plain
from surgeon.training.outcomes import ArmRun, Failure, Outcome, Point

IDENTITY_FILE = "comparison.json"


class RunStore(MutableMapping[Point, Outcome]):
    """A folder of finished runs.

    Every run is written at once and atomically. What decides a run besides its name (arm, learning rate, seed) stands
    in ``comparison.json``; a folder that says otherwise is refused. The folder appears with the first finished
    run, or when it is begun before that.

    Args:
        folder: where the runs are, or will be.
        identity: JSON-compatible object; what all runs of the comparison share.
        restart: start anew; the old runs are replaced when the first new one is finished.

    Raises:
        UsageError: if the folder belongs to another comparison.
        CheckpointError: if the folder's ``comparison.json`` is damaged.
        ExistsError: if the folder holds something else and ``restart`` is False.
        WriteError: if the place cannot be written to.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], restart: bool = False) -> None:
        self.folder = Path(folder)
        self.damaged: list[str] = []
        self._identity = json_compatible(identity)
        self._begun = (self.folder / IDENTITY_FILE).is_file() and not restart
        self._restart = restart
        if self.folder.is_file():
            raise WriteError(f"could not write {str(folder)!r}: a file of that name is in the way: choose another `-o`")
        check_writable(self.folder, True)
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self._begun or restart):
            raise ExistsError(
                f"expected finished runs of a comparison in {str(folder)!r}, got a folder without {IDENTITY_FILE}: "
                "choose another `-o`, or replace it with `--restart`"
            )
        if self._begun:
            self._require_same()
        self._runs = self._read_all() if self._begun else {}

    def begin(self) -> None:
        """Write the folder before its first run, so that what else is written meanwhile is known to be of it."""
        if not (self.folder / IDENTITY_FILE).is_file():
            with atomic_folder(self.folder, force=self._restart) as temporary:
                write_json(temporary / IDENTITY_FILE, self._identity)
            self._begun = True

    def give_up(self) -> None:
        """Remove the folder if it was begun for nothing."""
        if self._begun and not (self._runs or self.damaged):
            remove_entry(self.folder)

    def _require_same(self) -> None:
        path = self.folder / IDENTITY_FILE
        try:
            theirs = parse_json(bytes_of(path))
            found = list(differences(theirs, self._identity))
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"expected the description of a comparison in {str(path)!r}, could not read one ({error}): "
                "choose another `-o`, or start anew with `--restart`, which deletes its runs"
            ) from error
        if found:
            raise UsageError(
                f"expected the comparison in {str(self.folder)!r} to be the one asked for, but it differs in "
                f"{'; '.join(found)}: choose another `-o`, or start anew with `--restart`, which deletes its runs"
            )

    def _read_all(self) -> dict[Point, Outcome]:
        runs = {}
        for path in sorted(self.folder.glob("*.json")):
            if path.name == IDENTITY_FILE or path.name.startswith("."):
                continue
            try:
                point, outcome = _read(path)
            except (OSError, ValueError):
                self.damaged.append(path.name)
                continue
            runs[point] = outcome
        return runs

    def __setitem__(self, point: Point, outcome: Outcome) -> None:
        stored = _Stored(point, failure=outcome) if isinstance(outcome, Failure) else _Stored(point, outcome)
        data = dataclasses.asdict(stored)
        if self._begun:
            write_json(self.folder / _file_name(point), data, force=True)
        else:
            with atomic_folder(self.folder, force=self._restart) as temporary:
                write_json(temporary / IDENTITY_FILE, self._identity)
                write_json(temporary / _file_name(point), data)
            self._begun = True
        self._runs[point] = outcome

    def __getitem__(self, point: Point) -> Outcome:
        return self._runs[point]

    def __delitem__(self, point: Point) -> None:
        (self.folder / _file_name(point)).unlink(missing_ok=True)
        del self._runs[point]

    def __iter__(self) -> Iterator[Point]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)


def differences(theirs: Any, mine: Any, where: str = "") -> Iterator[str]:
    """Say in words where two nested JSON values differ, by the names on the way to the difference."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for name in dict.fromkeys([*theirs, *mine]):
            yield from differences(theirs.get(name), mine.get(name), f"{where}.{name}" if where else str(name))
    elif theirs != mine:
        yield f"{where or 'its content'} ({_short(theirs)} there, {_short(mine)} here)"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _file_name(point: Point) -> str:
    return f"{point.key}.json"


@dataclass(frozen=True)
class _Stored:
    """One file: a run that was asked for, and what came out."""

    point: Point
    run: ArmRun | None = None
    failure: Failure | None = None


def _read(path: Path) -> tuple[Point, Outcome]:
    """Read what one run wrote; a ValueError means that the file is damaged, or of a version with other fields."""
    stored = read_plain(parse_json(bytes_of(path)), _Stored, "a finished run", ValueError)
    point, run = stored.point, stored.run
    if path.name != _file_name(point):
        raise ValueError("the file belongs to another run")
    if run is None or stored.failure is not None:
        if run is not None or stored.failure is None:
            raise ValueError("expected one outcome")
        return point, stored.failure
    if (run.arm, run.seed, run.learning_rate) != (point.arm, point.seed, point.learning_rate):
        raise ValueError("the run is another one than its name says")
    if not run.validation or bool(run.test) != point.test:
        raise ValueError("metrics are missing")
    return point, run
