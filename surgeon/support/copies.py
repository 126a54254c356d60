"""Copies of models, also of those that hold objects which refuse to be copied."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, fx, nn

COPIED = (Tensor, FunctionType, MethodType, str, bytes, int, float, complex, type(None))
"""What a copy has of its own even then: bound methods are hooks, which lead back to the module that they belong to."""


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a deep copy; if that fails, one that shares what is neither tensor, module, container nor function.

    Some libraries hang descriptions of their groups on every layer, which nobody changes and which cannot be copied.

    Args:
        model: the network.
        memo: by id, what to use instead of a copy.

    Returns:
        The copy: its parameters, buffers, modules and hooks are its own, and it has the keys of the model.
    """
    try:
        with _code_kept(model):
            result = copy.deepcopy(model, dict(memo or {}))
    except Exception:  # of what refuses, and in an archive of torch.package, whose code imports nothing of ours
        result = deep_copied(model, memo)
    return _with_the_keys_of(model, result)


def traced_again(model: nn.Module) -> nn.Module:
    """Return a copy in which all generated code is as torch.fx makes it when it is pickled: alike, wherever it is from.

    It has the keys of the model. Tracing takes three times as long as copying.
    """
    return _with_the_keys_of(model, deep_copied(model))


def deep_copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a copy with more keys: torch.fx makes buffers of the constants of a generated module."""
    given = dict(memo or {})
    try:
        return copy.deepcopy(model, dict(given))
    except Exception:
        shared = {id(each): each for each in _objects(model, set())}
        return copy.deepcopy(model, {**shared, **given})


_CODE: dict[int, fx.GraphModule] = {}


@contextmanager
def _code_kept(model: nn.Module) -> Iterator[None]:
    """While this is open, generated modules that a layer pickles in order to be copied (e3nn's do) are copied instead.

    Of what is pickled, torch.fx traces the code again.
    """
    found = {id(each): each for each in model.modules() if isinstance(each, fx.GraphModule)}
    classes = {type(each) for each in found.values()} - copyreg.dispatch_table.keys()
    try:
        _CODE.update(found)
        for each in classes:
            copyreg.pickle(each, _reference)
        yield
    finally:
        for each in classes:
            del copyreg.dispatch_table[each]
        for key in found:
            _CODE.pop(key, None)


def _reference(module: fx.GraphModule) -> tuple[Any, ...]:
    return _copy_of, (id(module),)


def _copy_of(key: int) -> fx.GraphModule:
    made: fx.GraphModule = copy.deepcopy(_CODE[key])
    return made


def _with_the_keys_of(model: nn.Module, result: nn.Module) -> nn.Module:
    """Leave out of a copy's state dict, in place, what torch.fx makes buffers of when it copies a generated module."""
    originals = dict(model.named_modules())
    for name, module in result.named_modules():
        if isinstance(module, fx.GraphModule) and name in originals:
            own = {*originals[name]._buffers, *originals[name]._parameters}
            module._non_persistent_buffers_set |= module._buffers.keys() - own
    return result


def _objects(value: object, seen: set[int]) -> Iterator[Any]:
    """Yield what is in nested modules and containers and is none itself; a module need not be a child of another."""
    if isinstance(value, COPIED) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield from _objects(vars(value), seen)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _objects(key, seen)
            yield from _objects(each, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _objects(each, seen)
    else:
        yield value
