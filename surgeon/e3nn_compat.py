"""One way to import e3nn that works for every version we support."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

import torch


def import_e3nn() -> ModuleType:
    """Return the module ``e3nn.o3``.

    e3nn before 0.5 reads its constants at import with a pickle that holds slices, which torch refuses by default since
    version 2.6, and scripts functions, which recent versions of torch call deprecated. Slices are allowed, and the
    deprecation is silenced, while importing and only then.
    """
    if "e3nn.o3" in sys.modules:
        return sys.modules["e3nn.o3"]
    with torch.serialization.safe_globals([slice]), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("e3nn.o3")
