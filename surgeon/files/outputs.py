"""One process at a time writes an output."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import ExistsError, WriteError
from surgeon.files.atomic import check_writable, translated


@contextmanager
def writing_alone(path: str | Path, force: bool = True) -> Iterator[None]:
    """Hold a lock on an output for as long as the context is open; the system lets go of it if the process is killed.

    Of several processes of one run the first one holds it. A process that held it and was killed is named in the log.

    Args:
        path: the file or folder that is going to be written.
        force: something may be there already.

    Raises:
        ExistsError: if another process holds the lock, which is named, or something is there and may not be.
        WriteError: if the place cannot be written to.
    """
    from filelock import FileLock, Timeout

    target = Path(os.path.realpath(path))
    place = target.with_name(f".{target.name}.surgeon-lock")
    lock = FileLock(place, timeout=0)
    try:
        check_writable(path, force)
    except ExistsError:
        if place.exists():  # of one that was killed when all was written
            with suppress(OSError, Timeout), lock:
                place.unlink()
        raise
    if not is_first_process():
        yield
        return
    with translated(target, place):
        try:
            lock.acquire()
        except Timeout:
            raise ExistsError(
                f"{str(target)!r} is being written by {_owner(place) or 'another process'}: wait until it has ended, "
                "or choose another output"
            ) from None
        except NotImplementedError as error:
            raise WriteError(
                f"could not write {str(target)!r}: its file system has no locks, so that nothing keeps two runs apart: "
                "choose another place"
            ) from error
    try:
        if before := _owner(place):
            logging.getLogger("surgeon").warning("taking over %s from %s, which was killed", target.name, before)
        with translated(target, place):
            place.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        try:
            place.unlink(missing_ok=True)  # while it is held: whoever waits for it finds it gone, and makes another
        except OSError:
            with suppress(OSError):
                place.write_text("")
        lock.release()


def _owner(place: Path) -> str:
    try:
        return place.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def is_first_process() -> bool:
    """Tell whether this is the first of the processes that a launcher has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"
