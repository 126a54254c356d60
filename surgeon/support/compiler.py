"""Torch's compiler is left out until somebody compiles: importing it takes longer than building most networks."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that torch's compiler leaves alone, like ``torch.compiler.disable``, but without importing it.

    As long as nobody has imported it, nothing can be compiled.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        if not disabled:
            if "torch._dynamo" not in sys.modules:
                return function(*arguments, **named)
            disabled.append(torch._dynamo.disable(function))  # type: ignore[no-untyped-call]
            # or this itself is compiled, for every function and argument anew
            torch._dynamo.eval_frame.skip_code(run.__code__)  # type: ignore[attr-defined]
        return disabled[0](*arguments, **named)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]  # what the compiler asks of a function that it meets
    return run


@contextmanager
def compiler_left_out() -> Iterator[None]:
    """While this is open, a library that decorates functions with ``torch.compiler.disable`` imports no compiler.

    e3nn does since version 0.6, and then its import takes twice as long.
    """
    own = torch.compiler.disable

    @functools.wraps(own)
    def disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        if isinstance(fn, FunctionType) and recursive and "torch._dynamo" not in sys.modules:
            return not_compiled(fn)
        return own(fn, recursive, reason=reason)  # type: ignore[no-untyped-call]

    torch.compiler.disable = disable
    try:
        yield
    finally:
        torch.compiler.disable = own


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Torch's mode of this name, whose subclasses are not compiled; torch's own way to that imports the compiler."""

    def __init_subclass__(cls) -> None:
        if "__torch_dispatch__" in vars(cls):
            cls.__torch_dispatch__ = not_compiled(vars(cls)["__torch_dispatch__"])  # type: ignore[method-assign]
