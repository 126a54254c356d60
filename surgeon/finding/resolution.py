"""Whether the error of an op that samples its features falls with their resolution: its module is made again, finer."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from types import FrameType
from typing import Any

import torch
from torch import nn

from surgeon.algebra.equivariance import Symmetry, equivariance_error
from surgeon.errors import ShapeError
from surgeon.finding.measurement import double_twin
from surgeon.support.copies import cast_to_double
from surgeon.support.modules import with_parents

Arguments = Mapping[str, Any]
"""What the constructor of a module was given, by name."""

FALLS = 0.5
"""An error falls if twice the resolution leaves no more than this share of it."""

SAME = 1e-3
"""Relative difference of two errors that are the same, up to the rounding of tables."""


class Constructions:
    """What modules were made with: torch keeps nothing of it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._made: dict[int, tuple[nn.Module, Arguments]] = {}

    def note(self, module: nn.Module, frame: FrameType | None) -> None:
        """Keep what the outermost of a module's constructors was given.

        Args:
            frame: of the constructor that has just called ``nn.Module.__init__``.
        """
        own: FrameType | None = None
        while frame is not None and frame.f_code.co_name == "__init__" and _self_in(frame) is module:
            own, frame = frame, frame.f_back
        names = list(inspect.signature(type(module).__init__).parameters)
        if own is not None and set(names) <= own.f_locals.keys():
            self._made[id(module)] = module, {name: own.f_locals[name] for name in names[1:]}

    def of(self, model: nn.Module) -> dict[str, Arguments]:
        """Return the arguments of those modules of a network that were seen, by qualified name."""
        named = model.named_modules()
        return {name: self._made[id(module)][1] for name, module in named if id(module) in self._made}


def _self_in(frame: FrameType) -> Any:
    return frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None


@contextmanager
def constructions() -> Iterator[Constructions]:
    """Note what modules are made with while the context is open."""
    seen, init = Constructions(), nn.Module.__init__

    def noting(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        seen.note(module, sys._getframe(1))
        init(module, *args, **kwargs)

    nn.Module.__init__ = noting  # type: ignore[assignment, method-assign]
    try:
        yield seen
    finally:
        nn.Module.__init__ = init  # type: ignore[method-assign]


def at_finer_resolution(
    model: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], owner: str, made: Mapping[str, Arguments]
) -> str:
    """Make the module that samples, or the innermost around it that can be, with one whole number doubled.

    Args:
        model: in float64 and eval mode.
        owner: the module in which equivariance fails first.
        made: what modules of the model were made with, by qualified name.

    Returns:
        The output's error before and after, in words, or that this was not tried.
    """
    known = {name: made[name] for name in with_parents(owner) if made.get(name)}
    before = _error(model, symmetry, inputs) if known else 0.0

    def error_with(name: str, arguments: Arguments) -> float | None:
        try:  # generated code of torch.fx prints what it cannot do
            with redirect_stderr(StringIO()):
                return _error(_with_again(model, name, arguments), symmetry, inputs)
        except Exception:  # foreign code, which may have changed its arguments, or the number is the size of another
            return None

    for name, arguments in known.items():
        again = error_with(name, arguments)
        if again is None or abs(again - before) > SAME * before:
            continue
        finer = ((error_with(name, arguments), words) for words, arguments in _doubled(arguments))
        tried = [(error, words) for error, words in finer if error is not None]
        if tried:
            after, words = min(tried)
            verdict = "falls with its resolution" if after <= FALLS * before else "is no matter of resolution"
            where = f"{name} made" if name else "the model made"
            return f"its error {verdict}: {before:.1e}, and {after:.1e} with {where} with {words}"
    return "whether its error falls with its resolution was not tried: no whole number is known that it was made with"


def _error(model: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...]) -> float:
    return max(error.maximum for error in equivariance_error(model, [inputs], symmetry, count=2).values())


def _with_again(model: nn.Module, name: str, arguments: Arguments) -> nn.Module:
    """Return a copy of a model in which one module is made anew with some arguments, and has its trained weights."""
    result = double_twin(model)
    old = result.get_submodule(name)
    bound = inspect.BoundArguments(inspect.signature(type(old)), dict(arguments))
    with torch.random.fork_rng(devices=[]):
        new = cast_to_double(type(old)(*bound.args, **bound.kwargs)).train(old.training)
    weights = dict(new.named_parameters())
    with torch.no_grad():
        for key, weight in old.named_parameters():
            if weights[key].shape == weight.shape:
                weights[key].copy_(weight)
            elif weight.requires_grad:
                raise ShapeError(f"the shape of {key} depends on what {name!r} is made with: leave that as it is")
    if not name:
        return new
    parent, _, own = name.rpartition(".")
    setattr(result.get_submodule(parent), own, new)
    return result


def _doubled(arguments: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Yield the arguments with one of their whole numbers doubled, in words too; a tuple of them counts as one."""
    for name, value in arguments.items():
        if isinstance(value, dict):
            yield from ((words, {**arguments, name: finer}) for words, finer in _doubled(value))
        numbers = value if isinstance(value, tuple | list) else [value]
        if numbers and all(type(number) is int and number > 1 for number in numbers):
            finer = type(value)(2 * number for number in value) if isinstance(value, tuple | list) else 2 * value
            yield f"{name} = {finer} in place of {value}", {**arguments, name: finer}
