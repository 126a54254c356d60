"""One way to import e3nn that works for every version we support, and to build its networks more than once."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx

_SEARCH, _SEARCHED_IN = "optimize_einsums_full", ("e3nn.o3._linear", "e3nn.o3._tensor_product._codegen")
_FOUND: dict[Any, fx.Graph] = {}


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


@contextmanager
def contractions_kept() -> Iterator[None]:
    """While this is open, e3nn, once imported, orders the contractions of layers of the same code and sizes only once.

    That search is most of what building a layer takes. Many layers of a network are alike, and it is built up to three
    times: as what is opened, as the original, and in float64. Only the order is kept; constants are each layer's own.
    """
    holders = [vars(sys.modules[name]) for name in _SEARCHED_IN if hasattr(sys.modules.get(name), _SEARCH)]
    before = [names[_SEARCH] for names in holders]
    try:
        for names, search in zip(holders, before, strict=True):
            names[_SEARCH] = partial(_ordered, search)
        yield
    finally:
        for names, search in zip(holders, before, strict=True):
            names[_SEARCH] = search


def _ordered(search: Callable[..., Any], layer: Any, example: tuple[Tensor, ...]) -> Any:
    """Return generated code with its contractions in the best order: as found before, or by searching for it."""
    sizes = {name: tuple(constant.shape) for name, constant in layer.named_buffers()}
    key = (search, layer.code, *(tuple(tensor.shape) for tensor in example), *sorted(sizes.items()))
    if key in _FOUND:
        return fx.GraphModule(layer, copy.deepcopy(_FOUND[key]))
    result = search(layer, example)
    _FOUND[key] = copy.deepcopy(result.graph)
    return result
