"""Folders of modules that are no package, importable for a while: several have a ``task.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the modules in a folder importable by their bare names, and forget them afterwards."""
    names = [path.stem for path in folder.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        patch.syspath_prepend(str(folder))
        yield
        for name in names:
            sys.modules.pop(name, None)
