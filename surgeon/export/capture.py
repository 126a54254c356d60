"""Record a model with torch.export, in the ways that there are, and say in words where none of them gets through."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def open_axes(axes: Iterable[int]) -> dict[int, Any]:
    """Return how torch.export is told that axes have no fixed size."""
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def captured(
    function: nn.Module, arguments: tuple[Any, ...], shapes: Any, packages: Iterable[str] = ()
) -> torch.export.ExportedProgram:
    """Record a function of tensors, with its dynamic axes.

    First as Python runs it; then with ``int`` and ``len`` leaving sizes what they are, symbols; then by torch's own
    reading of the bytecode.

    Args:
        function: in eval mode; its only parameter is called ``tensors``.
        arguments: an example.
        shapes: the :func:`open_axes` of every tensor, nested as ``tensors``.
        packages: whose ``int`` and ``len`` are meant.

    Raises:
        Exception: what the first way raises, if none gets through.
    """
    ways: tuple[tuple[bool, Callable[[], AbstractContextManager[None]]], ...] = (
        (False, contextlib.nullcontext),
        (False, lambda: symbolic_sizes(packages)),
        (True, contextlib.nullcontext),
    )
    config: Any = torch.fx.experimental._config
    first: Exception | None = None
    for strict, context in ways:
        try:
            # Sizes 0 and 1 are like any other.
            with context(), _hashed_by_identity(function), quiet(), config.patch(backed_size_oblivious=True):
                return torch.export.export(
                    function,
                    arguments,
                    dynamic_shapes={"tensors": shapes},
                    strict=strict,
                    prefer_deferred_runtime_asserts_over_guards=True,
                )
        except Exception as error:  # anything can go wrong in the user's code, and in torch
            first = first or error
    assert first is not None
    raise first


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks, which are about their own insides, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _hashed_by_identity(model: nn.Module) -> Iterator[None]:
    """While this is open, no module is hashed by its tensors (those of escnn are), which have no values meanwhile."""
    classes = {base for module in model.modules() for base in type(module).__mro__ if base is not object}
    before = [(base, vars(base)["__hash__"]) for base in classes if vars(base).get("__hash__") is not None]
    try:
        for base, _ in before:
            setattr(base, "__hash__", object.__hash__)  # noqa: B010 - a type checker forbids the plain assignment
        yield
    finally:
        for base, own in before:
            setattr(base, "__hash__", own)  # noqa: B010


class _KeepsSymbols(type):
    """Makes ``int(n)`` the symbol n if it is one, and an int otherwise; what is an int stays the same."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        symbol = arguments and isinstance(arguments[0], torch.SymInt)
        return arguments[0] if symbol else builtins.int(*arguments, **named)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, builtins.int)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return issubclass(subclass, builtins.int)


class _Int(int, metaclass=_KeepsSymbols):
    pass


def _len(items: Any) -> Any:
    return items.shape[0] if isinstance(items, Tensor) and items.dim() else builtins.len(items)


@contextlib.contextmanager
def symbolic_sizes(packages: Iterable[str]) -> Iterator[None]:
    """While this is open, ``int(n)`` and ``len(x)`` in all modules of some packages do not turn sizes into numbers.

    Python insists that both return plain numbers, which would fix the size for good.

    Args:
        packages: top-level names; modules that define names of their own for these are left alone.
    """
    wanted = {package.partition(".")[0] for package in packages} - {"torch", "builtins", "surgeon"}
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in wanted]
    changed: list[tuple[dict[str, Any], str]] = []
    try:
        for module in modules:
            names = getattr(module, "__dict__", {})
            for name, replacement in (("int", _Int), ("len", _len)):
                if name not in names:
                    names[name] = replacement
                    changed.append((names, name))
        yield
    finally:
        for names, name in changed:
            del names[name]


def packages_of(model: nn.Module, *others: Any) -> set[str]:
    """Return the packages in which the classes of a model's modules, and of other objects, are defined."""
    return {type(item).__module__.partition(".")[0] for item in (*model.modules(), *others)}
