"""Run TorchScript as it is written, so that the recorded ops do not depend on what has run before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Run scripted modules and functions unoptimised while the context is open.

    The executor profiles the first runs of a function in a process, rewrites it for the shapes it has seen, and keeps
    the result, for all modules of a class. What it kept is thrown away, and made again when it is next needed.

    Args:
        model: its scripted modules are; scripted functions are wherever they are called.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            for name in module._c._method_names():
                _flush(module._c._get_method(name))
    call = torch.jit.ScriptFunction.__call__
    torch.jit.ScriptFunction.__call__ = _forgetting(call)  # type: ignore[method-assign]
    try:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        torch.jit.ScriptFunction.__call__ = call  # type: ignore[method-assign]


def _flush(function: Any) -> None:
    flush = getattr(function, "_debug_flush_compilation_cache", None)
    if flush is not None:
        flush()


def _forgetting(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        _flush(self)
        return call(self, *args, **kwargs)

    return run
