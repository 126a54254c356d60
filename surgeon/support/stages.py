"""How long the stages of a command take, told as soon as each has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Announce = Callable[[str], None]
"""Told a line; what shows it decides where."""

Stage = Callable[[str], AbstractContextManager[None]]
"""Opens a stage by its name."""


def silent(_: str) -> None:
    """Show nothing."""


@contextmanager
def timed(name: str, announce: Announce = silent) -> Iterator[None]:
    """Tell when a stage has ended, and how many seconds it took; one that fails is not told of."""
    stages = Stages(announce)
    yield
    stages(name)


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
