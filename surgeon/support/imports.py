"""Importing what a user names: ``module:attribute``, with errors that say what is wrong and where."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from surgeon.errors import SurgeonError


def one_line(error: BaseException) -> str:
    """Return the type and message of an error on one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def close_names(name: str, choices: list[str], limit: int = 10) -> str:
    """Return the choices nearest to ``name``, or the first ones if none is near, for an error message."""
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    listed = near or choices[:limit]
    return ", ".join(listed) if listed else "nothing"


def failing_line(error: BaseException, path: str | Path) -> int | None:
    """Return the last line of ``path`` that the error passed through, or None if it never did."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


@contextmanager
def importable(folder: str | Path) -> Iterator[None]:
    """Put ``folder`` first on ``sys.path`` for the duration, as ``python -m`` does with the current folder."""
    entry = str(Path(folder).resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(entry)


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """Put the process's environment variables back afterwards; some libraries set some when they are imported."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


def import_onnxruntime() -> ModuleType:
    """Return ONNX Runtime; its reports to its maker are off, unless ``ORT_DISABLE_TELEMETRY`` already says something.

    It reads the variable when it is imported; its function for the same purpose does not stop the connection.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def import_attribute(spec: str, what: str, error_class: type[SurgeonError]) -> Any:
    """Return the object that ``module:attribute`` names.

    Args:
        spec: a dotted module, a colon, a dotted attribute.
        what: what it stands for, for the message ("a model factory").

    Raises:
        SurgeonError: of the given class, if the spec is malformed, the import fails, or the attribute is missing.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise error_class(f"expected {what} as `module:function`, got {spec!r}: write it like `package.models:build`")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise error_class(
            f"could not import {what} {spec!r}: there is no module {error.name!r}: "
            "install it, or run from the folder that holds it"
        ) from error
    except Exception as error:
        raise error_class(
            f"could not import {what} {spec!r}: importing {module_name} failed with {one_line(error)}"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            choices = close_names(name, [other for other in dir(found) if not other.startswith("_")])
            raise error_class(f"expected {name!r} in {module_name} ({what} {spec!r}), found none: it has {choices}")
        found = getattr(found, name)
    return found


def call_with(
    function: Callable[..., Any], arguments: Mapping[str, Any], name: str, error_class: type[SurgeonError]
) -> Any:
    """Call ``function`` with named arguments taken from a file or a flag.

    Args:
        name: how the message calls the function.

    Raises:
        SurgeonError: of the given class, if the arguments do not fit (the accepted ones are listed) or the call fails.
    """
    try:
        signature: inspect.Signature | None = inspect.signature(function)
    except (TypeError, ValueError):  # some built-ins have none
        signature = None
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            accepted = ", ".join(str(parameter) for parameter in signature.parameters.values()) or "none"
            raise error_class(f"{name} cannot be called like this ({error}): it accepts {accepted}") from error
    try:
        return function(**arguments)
    except SurgeonError:
        raise
    except Exception as error:
        path = inspect.getsourcefile(function) if inspect.isroutine(function) or inspect.isclass(function) else None
        line = failing_line(error, path) if path else None
        place = f" at line {line} of {path}" if line else ""
        raise error_class(f"{name} failed{place} with {one_line(error)}") from error
