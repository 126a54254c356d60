"""One way to import e3nn that works for every version we support, and to build its networks more than once."""

from __future__ import annotations

import copy
import importlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.support.imports import unchanged_environment

_FOUND: dict[Any, fx.Graph] = {}
MOST_FOUND = 1024
_MOMENTS: dict[Any, Tensor] = {}


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


def import_above_e3nn(name: str) -> ModuleType:
    """Return a module of a library on e3nn, without what importing it prints, warns of, and sets in the environment."""
    import_e3nn()
    with unchanged_environment(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        unscript_harmonics()
        return importlib.import_module(name)


@contextmanager
def e3nn_defaults(**settings: Any) -> Iterator[None]:
    """While this is open, e3nn builds layers by other optimisation defaults than those set, and warnings are silent."""
    import_e3nn()
    e3nn = importlib.import_module("e3nn")
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(**{**before, **settings})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        e3nn.set_optimization_defaults(**before)


@contextmanager
def results_kept() -> Iterator[None]:
    """While this is open, e3nn, once imported, looks only once for what takes most of the time of building a layer.

    That is the order of contractions, for layers of the same code and sizes, and the second moment of an activation,
    from a million random numbers that are always the same. Many layers of a network are alike, and it is built up to
    three times: as what is opened, as the original, and in float64. Other constants are each layer's own.
    """
    kept = [
        (vars(sys.modules[module]), name, keep)
        for module, name, keep in _KEPT
        if hasattr(sys.modules.get(module), name)
    ]
    before = [names[name] for names, name, _ in kept]
    try:
        for (names, name, keep), own in zip(kept, before, strict=True):
            names[name] = partial(keep, own)
        yield
    finally:
        for (names, name, _), own in zip(kept, before, strict=True):
            names[name] = own


def _ordered(search: Callable[..., Any], layer: Any, example: tuple[Tensor, ...]) -> Any:
    """Return generated code with its contractions in the best order: as found before, or by searching for it."""
    sizes = {name: tuple(constant.shape) for name, constant in layer.named_buffers()}
    key = (search, layer.code, *(tuple(tensor.shape) for tensor in example), *sorted(sizes.items()))
    if key in _FOUND:
        return fx.GraphModule(layer, copy.deepcopy(_FOUND[key]))
    result = search(layer, example)
    if len(_FOUND) >= MOST_FOUND:
        del _FOUND[next(iter(_FOUND))]
    _FOUND[key] = copy.deepcopy(result.graph)
    return result


def _moment(compute: Callable[..., Tensor], function: Any, n: int, dtype: Any = None, device: Any = None) -> Tensor:
    """Return the n-th moment of an activation; only that of torch's own without a state is kept."""
    name = _name(function)
    if name is None:
        return compute(function, n, dtype, device)
    key = (compute, name, n, dtype or torch.get_default_dtype(), device)
    if key not in _MOMENTS:
        _MOMENTS[key] = compute(function, n, dtype, device)
    return _MOMENTS[key].clone()


def _name(function: Any) -> Any:
    """Return what two activations of torch share only if they do the same; None for all others, and random ones."""
    if isinstance(function, nn.Module):
        known = type(function).__module__ == "torch.nn.modules.activation" and not isinstance(function, nn.RReLU)
        return repr(function) if known and not function.state_dict() else None
    return function if str(getattr(function, "__module__", "")).startswith("torch") else None


_KEPT = (
    ("e3nn.o3._linear", "optimize_einsums_full", _ordered),
    ("e3nn.o3._tensor_product._codegen", "optimize_einsums_full", _ordered),
    ("e3nn.math._normalize_activation", "moment", _moment),
)
