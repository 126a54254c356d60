"""The calls of chosen modules while a model runs: what they were given, and what they returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.support.modules import forward_signature
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
    with ExitStack() as stack:
        for name, module in modules.items():
            for hook in _hooks(module, calls[name], (put_away or {}).get(name, Tensor.clone)):
                stack.callback(hook.remove)
        yield calls


def _hooks(module: nn.Module, into: Calls, keep: Callable[[Tensor], Tensor]) -> list[Any]:
    signature = forward_signature(module)
    pending: list[Mapping[str, Any]] = []

    def snapshot(tensor: Tensor) -> Tensor:
        with torch._C._DisableTorchDispatch():  # a copy is no op of the run
            return keep(tensor.detach())

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pending.append(map_tensors(snapshot, signature.bind(*args, **kwargs).arguments))

    def after(_: nn.Module, args: Any, result: Any) -> None:
        into.append((pending.pop(), map_tensors(snapshot, result)))

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
