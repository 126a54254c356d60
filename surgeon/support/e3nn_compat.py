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


def unscript_harmonics() -> None:
    """Let e3nn before 0.5, once imported, run the Python of its spherical harmonics, which it scripts at import.

    TorchScript rewrites a function after its first runs, so that the recorded graph of a model, of which a certificate
    keeps the hash, would depend on how often the function has run in this process.
    """
    holder = sys.modules["e3nn.o3._spherical_harmonics"]
    function = getattr(holder, "_spherical_harmonics", None)
    if isinstance(function, torch.jit.ScriptFunction):
        holder._spherical_harmonics = function._torchdynamo_inline  # type: ignore[attr-defined]
