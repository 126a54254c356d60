"""Copies of models, also of those that hold objects which refuse to be copied."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.support.trees import in_dtype

COPIED = (Tensor, FunctionType, MethodType, str, bytes, int, float, complex, type(None))
"""What a copy has of its own even then: bound methods are hooks, which lead back to the module that they belong to."""


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a deep copy; if that fails, one that shares what is neither tensor, module, container nor function.

    Some libraries hang descriptions of their groups on every layer, which nobody changes and which cannot be copied.

    Args:
        memo: by id, what to use instead of a copy.

    Returns:
        The copy: its parameters, buffers, modules and hooks are its own, and it has the keys of the model.
    """
    try:
        result = _with_code(model, memo or {})
    except Exception:  # of what refuses
        result = deep_copied(model, memo)
    return _with_the_keys_of(model, result)


def lent_weights(model: nn.Module) -> dict[int, nn.Parameter]:
    """Return for :func:`copied` what leaves the weights where they are: each is copied when one of the two is written.

    Those that torch cannot lend (in memory of numpy's, or shared between processes) are left out.
    """
    lent = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            with suppress(RuntimeError):
                same = torch._lazy_clone(parameter.detach())
                lent[id(parameter)] = nn.Parameter(same, requires_grad=parameter.requires_grad)
    return lent


def cast_to_double(model: nn.Module) -> nn.Module:
    """Give a model float64 numbers, and complex ones of two such; in place."""
    convert: Callable[..., nn.Module] = model._apply  # Module.to would also make complex tensors real
    return convert(lambda tensor: in_dtype(tensor, torch.float64))


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


def _with_code(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """Return a deep copy; layers that pickle what they have generated in order to be copied (e3nn's do) need not.

    Of what is pickled, torch.fx traces the code again.
    """
    layers = {id(each): each for each in model.modules() if _pickles_code(each) and id(each) not in memo}
    empty = {key: type(layer).__new__(type(layer)) for key, layer in layers.items()}
    # Torch keeps ten of these in every module, which take copy.deepcopy longer than all the rest.
    attributes = (value for module in model.modules() for value in vars(module).values())
    hooks = {id(value): OrderedDict[Any, Any]() for value in attributes if type(value) is OrderedDict and not value}
    known = {**hooks, **memo, **empty}
    result = copy.deepcopy(model, known)
    for key, layer in layers.items():
        vars(empty[key]).update(copy.deepcopy(vars(layer), known))
    return result


def _pickles_code(module: nn.Module) -> bool:
    own = getattr(type(module), "__getstate__", None) is not getattr(nn.Module, "__getstate__", None)
    return own and any(isinstance(child, fx.GraphModule) for child in module.children())


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
