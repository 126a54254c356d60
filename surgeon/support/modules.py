"""Networks and their modules: what is one, and which has a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from surgeon.errors import PlanError, UsageError


def require_network(given: object) -> None:
    """Refuse what is no network, such as a path or a network's parameters.

    Raises:
        UsageError: if it is none.
    """
    if not isinstance(given, nn.Module):
        raise UsageError(
            f"expected a network (torch.nn.Module), got {type(given).__name__}: give the module itself; that of a "
            "checkpoint or a folder is surgeon.open_path(PATH).model"
        )


_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Torch's classes around a network, the last by ``torch.compile``, and where they keep it."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside torch's wrappers, which put their own name in front of its keys.

    What its modules compile in place (``Module.compile``) runs as it is written from then on, as in a copy.
    """
    while (kind := type(model)).__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
        model = getattr(model, _WRAPPERS[kind.__name__])
    for module in model.modules():
        vars(module).pop("_compiled_call_impl", None)
    return model


def named_module(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule with this qualified name; the empty string is the model itself.

    Raises:
        PlanError: if the model has no such submodule.
    """
    try:
        found = attrgetter(name)(model) if name else model  # `get_submodule` takes ten times as long
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        raise PlanError(
            f"expected a submodule {name!r} in {type(model).__name__}, but there is none: "
            "the plan was made for another model, make a new one with `surgeon inspect`"
        )
    return found


def with_parents(name: str) -> list[str]:
    """Return a module's name and those of the modules it is in, innermost first; the model itself is last."""
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def forward_signature(module: nn.Module) -> inspect.Signature:
    """Return the signature of a module's forward, bound to it."""
    return _forward_of(module)[0]


def positions(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the arguments that a module's forward takes by position."""
    return _forward_of(module)[1]


def _forward_of(module: nn.Module) -> tuple[inspect.Signature, tuple[str, ...]]:
    """Return both; the forward of a class is looked at once."""
    own = getattr(type(module), "forward", None)
    if "forward" in vars(module) or not isinstance(own, FunctionType):
        return _taken_by(module.forward)
    return _taken_by_class(own)


@lru_cache(maxsize=256)
def _taken_by_class(forward: FunctionType) -> tuple[inspect.Signature, tuple[str, ...]]:
    return _taken_by(MethodType(forward, object()))


def _taken_by(forward: Callable[..., Any]) -> tuple[inspect.Signature, tuple[str, ...]]:
    signature = inspect.signature(forward)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return signature, tuple(name for name, each in signature.parameters.items() if each.kind in kinds)


def argument_binder(module: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """Return what names the arguments of a call of a module's forward; those that come by position alone at once."""
    signature, places = _forward_of(module)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs or len(args) > len(places):
            return signature.bind(*args, **kwargs).arguments
        return dict(zip(places, args, strict=False))

    return bind


def own_weight(module: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter of a module or of one inside it, below its parametrization if it has one.

    Raises:
        AttributeError: if there is none.
    """
    owner, _, own = name.rpartition(".")
    holder = module.get_submodule(owner)
    if not parametrize.is_parametrized(holder, own):
        return holder.get_parameter(own)
    lists: Any = holder.parametrizations
    original: nn.Parameter = lists[own].original
    return original
