"""A file that is opened once: what is hashed and what is read are the same bytes, and none of them is mapped."""

from __future__ import annotations

import hashlib
import os
import weakref
from pathlib import Path
from typing import BinaryIO, NoReturn

from surgeon.errors import CheckpointError
from surgeon.files.ordinary import opening_ordinary

_BUFFER_BYTES = 2**18


class OpenFile:
    """An open file, whose bytes count for as long as nobody writes to it.

    One that takes its place under its name changes nothing here: the old one is read to the end. A mapped file would be
    no copy either, and would end the process with SIGBUS where it was cut off.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = open(path, "rb", buffering=0, opener=opening_ordinary)  # noqa: SIM115 (for as long as this object)
        weakref.finalize(self, self._handle.close)
        self._state = self._found()

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        return self._state[0]

    def stream(self) -> BinaryIO:
        """Return a reader of the same file from its begin, for libraries; one at a time, to be closed by the caller."""
        reader = open(os.dup(self._handle.fileno()), "rb")  # noqa: SIM115 (the caller closes it)
        reader.seek(0)
        return reader

    def read_into(self, buffer: memoryview, start: int, what: str) -> None:
        """Fill a buffer with the bytes from ``start`` on.

        Args:
            buffer: of the bytes wanted.
            what: they are, for messages.

        Raises:
            CheckpointError: if the file ends before, was written to since it was opened, or cannot be read.
        """
        done = 0
        try:
            while got := os.preadv(self._handle.fileno(), [buffer[done:]], start + done):
                done += got
        except OSError as error:
            raise CheckpointError(
                f"could not read {what} in {str(self.path)!r}: {error.strerror or error}: check its disk, and try again"
            ) from error
        if done < len(buffer):
            self._refuse(f"expected {len(buffer):,} bytes of {what}, the file ended after {done:,} of them")
        self.require_unchanged()

    def read(self, count: int, what: str, start: int = 0) -> bytes:
        """Return ``count`` bytes from ``start`` on; as :meth:`read_into`."""
        found = bytearray(count)
        self.read_into(memoryview(found), start, what)
        return bytes(found)

    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes as 64 hex digits.

        Raises:
            CheckpointError: as for :meth:`read_into`.
        """
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES))
        for start in range(0, self.size, _BUFFER_BYTES):
            piece = buffer[: self.size - start]
            self.read_into(piece, start, "the whole file")
            digest.update(piece)
        return digest.hexdigest()

    def require_unchanged(self, by_name: bool = False) -> None:
        """Refuse a file that was written to since it was opened.

        Args:
            by_name: refuse one that was replaced, too: others have opened it by its name.

        Raises:
            CheckpointError: if it was.
        """
        if self._found() != self._state:
            self._refuse("it was written to")
        if by_name and not (self.path.is_file() and os.path.samestat(self.path.stat(), self._status())):
            self._refuse("another file has its name")

    def _refuse(self, why: str) -> NoReturn:
        raise CheckpointError(
            f"{str(self.path)!r} has changed while it was read ({why}): wait until it is written, and try again"
        )

    def _status(self) -> os.stat_result:
        return os.fstat(self._handle.fileno())

    def _found(self) -> tuple[int, int]:
        """Return what changes when the file is written to; its change time also does when it is renamed or linked."""
        status = self._status()
        return status.st_size, status.st_mtime_ns
