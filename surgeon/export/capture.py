"""Record a model with torch.export, in the ways that there are, and say in words where none of them gets through."""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.export.sample import Sample
from surgeon.support.trees import tensors_in


def captured(function: nn.Module, sample: Sample, packages: Iterable[str] = ()) -> torch.export.ExportedProgram:
    """Record a function from the tensors of a batch, with its dynamic axes.

    First as Python runs it; then with ``int`` and ``len`` leaving sizes what they are, symbols; then by torch's own
    reading of the bytecode.

    Args:
        function: in eval mode; it takes the tensors of the batch one by one.
        sample: the example and its dynamic axes.
        packages: whose ``int`` and ``len`` are meant.

    Raises:
        Exception: what the first way raises, if none gets through.
    """
    ways: tuple[tuple[bool, Callable[[], AbstractContextManager[None]]], ...] = (
        (False, contextlib.nullcontext),
        (False, lambda: symbolic_sizes(packages)),
        (True, contextlib.nullcontext),
    )
    first: Exception | None = None
    for strict, context in ways:
        try:
            with context(), _hashed_by_identity(function):
                return _exported(function, sample, strict)
        except Exception as error:  # anything can go wrong in the user's code, and in torch
            first = first or error
    assert first is not None
    raise first


def _exported(function: nn.Module, sample: Sample, strict: bool) -> torch.export.ExportedProgram:
    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for axes in sample.dynamic)
    config: Any = torch.fx.experimental._config
    with config.patch(backed_size_oblivious=True):  # so that sizes 0 and 1 are like any other
        return torch.export.export(
            function,
            tuple(tensors_in(sample.batch)),
            dynamic_shapes={"tensors": shapes},
            strict=strict,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


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
