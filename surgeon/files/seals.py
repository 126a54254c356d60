"""Folders that are opened again: sealed, saved anew in place, and written by one process at a time.

A save never moves or deletes a file that is not its own. New files are staged in a hidden folder inside; one rename
declares them complete, and from then on anybody who finds them moves them to their places.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.files.atomic import atomic_folder, put_back, remove_entry, sync_folder, sync_tree, translated
from surgeon.files.content import sha256_of_file, write_json
from surgeon.files.ordinary import bytes_of
from surgeon.support.plain import parse_json

SEAL_FILE = "surgeon_seal.json"
EDITABLE = "README.md"
"""The user may write into it: it is never judged, and replaced only as long as it is as we wrote it."""

_STAGED, _COMPLETE = ".surgeon-staged", ".surgeon-complete"


def seal_folder(folder: Path) -> None:
    """Write the SHA-256 of every file in a folder into its seal; of all files the last one written."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    hashes = {name: sha256_of_file(folder / name) for name in names if name != SEAL_FILE}
    write_json(folder / SEAL_FILE, {"files": hashes, "sha256": _hash_of(hashes)}, force=True)


def check_seal(folder: Path, required: Sequence[str], read: Mapping[str, Callable[[], str]] | None = None) -> None:
    """Refuse a folder with files that are not as they were written.

    Files that were added are left alone, and so are sealed ones that are gone, unless they are required.

    Args:
        folder: as :func:`seal_folder` left it.
        required: names that have to be there and sealed.
        read: by name, what returns the SHA-256 of files that were read; of the others it is taken now.

    Raises:
        CheckpointError: naming the file.
    """
    hashes = _read_seal(folder)
    for name in (*required, *hashes):
        path = folder / name
        if name == EDITABLE or (name not in required and not path.is_file()):
            continue
        hashed = (read or {}).get(name, partial(sha256_of_file, path))
        if hashes.get(name) != hashed():
            raise CheckpointError(
                f"{str(path)!r} is not as it was written: it is damaged or was edited, so nothing of {str(folder)!r} "
                "is used; restore the file, write the folder again, or let a run start anew with `--force`"
            )


def _hash_of(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _read_seal(folder: Path) -> Mapping[str, str]:
    path = folder / SEAL_FILE
    try:
        data: Any = parse_json(bytes_of(path))
        hashes: Mapping[str, str] = data["files"]
        if data["sha256"] != _hash_of(hashes) or data.keys() != {"files", "sha256"}:
            raise ValueError("its own hash is wrong")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"expected {SEAL_FILE} in {str(folder)!r} with the hashes of its files, but there is none: bring the whole "
            "folder, fetch one from the Hub with `surgeon pull`, or write it again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{str(path)!r} is not as it was written ({error}): restore the file, write the folder again, or let a "
            "run start anew with `--force`"
        ) from error
    return hashes


@contextmanager
def updated_folder(path: str | Path) -> Iterator[Path]:
    """Write files into a folder all or none, replacing those of the same names and leaving everything else alone.

    A ``README.md`` that is not as the last save wrote it is the user's and stays.

    Args:
        path: the folder; made if it is not there.

    Yields:
        An empty folder for the new files, which it has to be sealed with: see :func:`seal_folder`.

    Raises:
        WriteError: if the system refuses; the files of the save before are still there.
    """
    target = Path(os.path.realpath(path))
    if not target.is_dir() or not any(target.iterdir()):
        with atomic_folder(target) as temporary:
            yield temporary
        return
    finish_update(target)
    staged = target / _STAGED
    remove_entry(staged)
    with translated(target, staged):
        try:
            os.mkdir(staged)
            yield staged
            sync_tree(staged)
            os.rename(staged, target / _COMPLETE)
        except BaseException:
            remove_entry(staged)
            raise
    sync_folder(target)
    finish_update(target)


def finish_update(folder: Path) -> None:
    """Move the files of a complete save to their places, where the process that made it was killed before it did.

    Several processes may do so at once: nothing but a complete save is ever moved, and what is gone was moved already.

    Raises:
        WriteError: if the system refuses.
    """
    complete = folder / _COMPLETE
    if not complete.is_dir():
        return
    with translated(folder, complete):
        names = [path.relative_to(complete) for path in sorted(complete.rglob("*")) if not path.is_dir()]
        for name in sorted(names, key=lambda name: name.name == SEAL_FILE):  # the old seal judges the old README.md
            with suppress(FileNotFoundError):
                if str(name) == EDITABLE and _is_the_users(folder):
                    os.unlink(complete / name)
                    continue
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(complete / name, folder / name)
        for place in {(folder / name).parent for name in names}:
            sync_folder(place)
        for place in sorted((path for path in complete.rglob("*") if path.is_dir()), reverse=True):
            _remove_empty(place)
        _remove_empty(complete)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty: another process has completed the next save
        os.rmdir(folder)


def _is_the_users(folder: Path) -> bool:
    """Tell whether ``README.md`` is another than the one that the folder was sealed with."""
    path = folder / EDITABLE
    if not os.path.lexists(path):
        return False
    try:
        return _read_seal(folder).get(EDITABLE) != sha256_of_file(path)
    except CheckpointError:
        return True


def recover(path: str | Path) -> None:
    """Bring a folder back in order that a killed process left between two states: the old or the new one, whole.

    Raises:
        WriteError: if it cannot be, or another process may still be at work.
    """
    target = Path(os.path.realpath(path))
    put_back(target.parent, target.name)
    finish_update(target)
