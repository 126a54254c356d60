"""Files that are opened to be read: ordinary ones, no pipes and no devices."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def opening_ordinary(path: str, flags: int) -> int:
    """Open a file for ``open(..., opener=opening_ordinary)``: nothing that lets its reader wait, or never ends.

    Raises:
        OSError: if it cannot be opened, or is a pipe or a device.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # a folder is refused by who opens it
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is a pipe or a device, no file", path)


def bytes_of(path: Path) -> bytes:
    """Return the bytes of an ordinary file; errors as in :func:`opening_ordinary`."""
    with open(path, "rb", opener=opening_ordinary) as handle:
        return handle.read()
