"""The calls of chosen modules while a model runs: what they were given, and what they returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.support.modules import argument_binder
from surgeon.support.transforms import outside
from surgeon.support.trees import map_tensors

Calls = list[tuple[Mapping[str, Any], Any]]
"""The calls of one module: arguments by name, and what it returned."""


@contextmanager
def captured_calls(
    modules: Mapping[str, nn.Module], put_away: Mapping[str, Callable[[Tensor], Tensor]] | None = None
) -> Iterator[dict[str, Calls]]:
    """Collect arguments and results, detached copies, of every call of the modules while the context is open.

    Args:
        put_away: by the names of some, what makes of a tensor that which is collected, in place of a copy.
    """
    calls: dict[str, Calls] = {name: [] for name in modules}
    keep, hooks = put_away or {}, list[Any]()
    try:
        for name, module in modules.items():
            hooks += _hooks(module, calls[name], keep.get(name, Tensor.clone))
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def captured_results(modules: Mapping[str, nn.Module], keep: Callable[[Any], Any]) -> Iterator[dict[str, list[Any]]]:
    """Collect ``keep`` of what every call of the modules returned while the context is open."""
    results: dict[str, list[Any]] = {name: [] for name in modules}

    def hook(into: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
        def after(_: nn.Module, __: Any, result: Any) -> None:
            with torch._C._DisableTorchDispatch():  # it is no op of the run
                into.append(keep(map_tensors(lambda tensor: outside(tensor).detach(), result)))

        return after

    hooks = [module.register_forward_hook(hook(results[name])) for name, module in modules.items()]
    try:
        yield results
    finally:
        for each in hooks:
            each.remove()


def _hooks(module: nn.Module, into: Calls, keep: Callable[[Tensor], Tensor]) -> list[Any]:
    bind = argument_binder(module)
    pending: list[Mapping[str, Any]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending.append(_snapshot(bind(args, kwargs), keep))

    def after(_: nn.Module, args: Any, result: Any) -> None:
        into.append((pending.pop(), _snapshot(result, keep)))

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]


def _snapshot(tree: Any, keep: Callable[[Tensor], Tensor]) -> Any:
    with torch._C._DisableTorchDispatch():  # a copy is no op of the run
        return map_tensors(lambda tensor: keep(outside(tensor).detach()), tree)
