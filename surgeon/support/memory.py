"""The memory of this process, where its C library is glibc."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of how much it keeps of what is freed, and of the size from which on an allocation is memory of its
own, which is returned when it is freed."""

_OWN, _USUAL = 2**18, 2**25
"""Bytes: the size that is asked for, and that to which glibc goes by itself where tensors are freed, of which it then
keeps twice as much."""


def _call(name: str, *arguments: int) -> None:
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)


def give_back() -> None:
    """Return freed memory to the system, if the C library is one that can: glibc keeps it between what is still held.

    A few small tensors kept of each of many runs would otherwise leave holes as large as the runs themselves.
    """
    _call("malloc_trim", 0)


def installed() -> float:
    """Return the bytes of memory that this machine has; infinity where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let Python look for unused cycles of objects twenty times more seldom while the context is open.

    Where many objects are made that are kept, each search goes through all of them, and all that torch has made.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(20 * first, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


@contextmanager
def large_ones_apart() -> Iterator[None]:
    """Let large tensors have memory of their own, so that what follows a freed one leaves no hole of its size.

    Every allocation of such a tensor then takes fresh pages, as training should not have to.
    """
    _call("mallopt", _MMAP_THRESHOLD, _OWN)
    try:
        yield
    finally:
        _call("mallopt", _MMAP_THRESHOLD, _USUAL)
        _call("mallopt", _TRIM_THRESHOLD, 2 * _USUAL)
