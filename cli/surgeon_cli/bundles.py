"""Options that several commands share, as dataclasses: a command takes one as a parameter and gets all its options."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import typing
from collections.abc import Callable
from typing import Any


def unbundled(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command whose type is a dataclass by that dataclass's fields, as typer options.

    Args:
        command: its dataclass parameters have fields annotated with ``Annotated[type, typer.Option(...)]`` and
            defaults.

    Returns:
        A function of keyword arguments with the flat signature, for typer to read.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    flat: list[inspect.Parameter] = []
    bundles: dict[str, type[Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            bundles[name] = typing.cast(type[Any], hints[name])
            flat += _fields(bundles[name])
        else:
            flat.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        from surgeon.support.compiler import compiler_left_out

        for name, bundle in bundles.items():
            given[name] = bundle(**{field.name: given.pop(field.name) for field in dataclasses.fields(bundle)})
        gc.freeze()  # what was imported stays: else most of what the collector does is to look through it again
        try:
            with compiler_left_out():
                command(**given)
        finally:
            gc.unfreeze()

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    del run.__wrapped__  # typer would read the bundled signature through it
    run.__doc__ = _flowing(inspect.getdoc(command) or "")
    return run


def _flowing(text: str) -> str:
    """Make one line of each paragraph, which typer would break where the source does; examples stay as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs)


def _fields(bundle: type[Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(bundle, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in dataclasses.fields(bundle)
    ]
