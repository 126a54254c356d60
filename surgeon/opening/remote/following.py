"""Take the hashes of files while the Hub's client is still writing them, since a download leaves the processor idle."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

_UNFINISHED = "*.incomplete"
_PIECE_BYTES = 2**18
_PAUSE_SECONDS = 0.01


class Following:
    """The files that appear in one folder, read from their begin as they grow; renaming them changes nothing.

    A file that is not written in order gets a wrong hash, so one that disproves a file proves nothing.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        self._found: dict[tuple[int, int], tuple[FileIO, hashlib._Hash]] = {}
        self._buffer = memoryview(bytearray(_PIECE_BYTES))

    def read_on(self) -> None:
        """Read what has been written since the last call."""
        for path in self._folder.glob(_UNFINISHED):
            with suppress(OSError):  # renamed meanwhile
                self._open(path)
        for handle, hashed in self._found.values():
            with suppress(OSError):  # then the hash is a wrong one
                while size := handle.readinto(self._buffer):
                    hashed.update(self._buffer[:size])

    def sha256(self, path: Path) -> str | None:
        """Return the hash of what has been read of a file, None if it was not seen while it was written."""
        found = self._found.get(_identity(os.stat(path)))
        return None if found is None else found[1].hexdigest()

    def _open(self, path: Path) -> None:
        if _identity(os.stat(path)) in self._found:
            return
        handle = self._files.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115 (it is in the stack)
        self._found.setdefault(_identity(os.fstat(handle.fileno())), (handle, hashlib.sha256()))


@contextmanager
def following(folder: Path) -> Iterator[Following]:
    """Follow the unfinished files of a folder in another thread; after the block their hashes are complete.

    Args:
        folder: where the client writes; it may not exist yet.
    """
    with ExitStack() as files:
        found, ended = Following(folder, files), threading.Event()

        def follow() -> None:
            while not ended.wait(_PAUSE_SECONDS):
                found.read_on()
            found.read_on()

        if os.name == "nt":  # there an open file cannot be renamed
            yield found
            return
        thread = threading.Thread(target=follow, name="hashes of downloads")
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
