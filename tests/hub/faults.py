"""Switches that make the loopback Hub fail in one exact way, a counted number of times."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from math import inf


class ConnectionDies(Exception):
    """The server closes the connection here, in the middle of whatever it was doing."""


@dataclass
class Fault:
    """One way to fail, for the ``times`` next requests that it concerns; ``hits`` counts those it has met.

    Attributes:
        target: pattern found in the path of the file in its repository, or in the sha256 of an upload, or (answers) in
            the request line, such as ``"POST /api/models/.*/commit/"``.
        at: number of bytes after which, or position at which, it happens.
        times: how often; ``inf`` for always.
    """

    kind: str
    target: str
    at: int = 0
    times: float = 1
    status: int = 500
    hits: int = 0

    def meets(self, kind: str, text: str) -> bool:
        return self.kind == kind and self.hits < self.times and re.search(self.target, text) is not None


class Faults:
    """The switches that are on; ``clear`` turns all of them off."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def clear(self) -> None:
        self._faults.clear()

    def die_in_download(self, file: str, after: int, times: float = 1) -> Fault:
        """Close the connection when ``after`` bytes of the file's content have been sent."""
        return self._add(Fault("download", file, after, times))

    def die_in_upload(self, sha256: str, after: int = 0, times: float = 1) -> Fault:
        """Close the connection as soon as more than ``after`` bytes of a large file's content have been received."""
        return self._add(Fault("upload", sha256, after, times))

    def die_before_commit(self, times: float = 1) -> Fault:
        """Close the connection when a commit has been received, and forget it."""
        return self._add(Fault("before commit", "", times=times))

    def die_after_commit(self, times: float = 1) -> Fault:
        """Close the connection when a commit has been written, so that its answer is lost."""
        return self._add(Fault("after commit", "", times=times))

    def truncate(self, file: str, to: int, times: float = inf) -> Fault:
        """Serve only the first ``to`` bytes of the file as if they were all of it; its metadata stay right."""
        return self._add(Fault("truncate", file, to, times))

    def flip_bit(self, file: str, byte: int, times: float = inf) -> Fault:
        """Serve the file with the lowest bit of one byte changed; its metadata stay right."""
        return self._add(Fault("flip", file, byte, times))

    def answer(self, status: int, request: str, times: float = 1) -> Fault:
        """Answer requests whose line (``GET /api/models/...``) contains the pattern with an error."""
        return self._add(Fault("answer", request, times=times, status=status))

    def refuse_everything(self) -> Fault:
        """Forbid whatever is asked; what was asked is in the log."""
        return self.answer(403, "", inf)

    def find(self, kind: str, text: str) -> Fault | None:
        """Return the first switch that concerns this, counting the hit."""
        with self._lock:
            for fault in self._faults:
                if fault.meets(kind, text):
                    fault.hits += 1
                    return fault
        return None

    def strike(self, kind: str, text: str) -> None:
        """Close the connection if a switch says so.

        Raises:
            ConnectionDies: if it does.
        """
        if self.find(kind, text) is not None:
            raise ConnectionDies(kind)

    def strike_upload(self, path: str, received: int) -> None:
        """Close the connection of an upload if a switch says that enough has been received.

        Raises:
            ConnectionDies: if it does.
        """
        with self._lock:
            for fault in self._faults:
                if fault.meets("upload", path) and received > fault.at:
                    fault.hits += 1
                    raise ConnectionDies(path)

    def spoil(self, file: str, data: bytes) -> bytes:
        """Return the content as it is served."""
        if (fault := self.find("truncate", file)) is not None:
            data = data[: fault.at]
        if (fault := self.find("flip", file)) is not None:
            data = data[: fault.at] + bytes([data[fault.at] ^ 1]) + data[fault.at + 1 :]
        return data

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault
