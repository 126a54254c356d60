"""The memory of this process."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system, if the C library is one that can: glibc keeps it between what is still held.

    A few small tensors kept of each of many runs would otherwise leave holes as large as the runs themselves.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
