"""How long the stages of a command take, told as soon as each has ended."""

from __future__ import annotations

import time
from collections.abc import Callable


class Stages:
    """Tells what has ended, and how many seconds it took; each stage begins where the one before has ended."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        """Begin the first stage; nothing is told if ``say`` is None."""
        self._say, self._begun = say, time.perf_counter()

    def __call__(self, ended: str) -> None:
        """Tell what was done, in words after which a time can stand."""
        now = time.perf_counter()
        if self._say is not None:
            self._say(f"{ended} ({now - self._begun:.1f} s)")
        self._begun = now
