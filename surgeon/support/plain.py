"""From what a JSON file holds to the dataclass that it describes: every field checked, and named if it is bad."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    Measured = float
else:

    class Measured(float):
        """A number that came out of a computation: JSON, which has no NaN and no infinity, has null for both."""


T = TypeVar("T")

LARGEST_INT = 2**63 - 1
_DIGITS = 20
"""Of the longest number of 64 bits, its sign included."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes) -> Any:
    """Read JSON as strictly as its standard says, whatever the text holds.

    Python's own reader takes NaN and infinities, halves of surrogate pairs, numbers of any length and names that occur
    twice, of which other readers take another value; and it raises RecursionError where values are nested too deep.

    Args:
        text: as UTF-8 if it is bytes.

    Returns:
        Dicts, lists, strings, finite numbers of at most 64 bits, booleans and None.

    Raises:
        ValueError: saying what is wrong; with line and column as ``json.JSONDecodeError`` if it is no JSON at all.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        data = json.loads(
            text,
            object_pairs_hook=unique_names,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
        if _SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("values that are nested too deep") from None
    except UnicodeError:
        raise ValueError("text that is not UTF-8") from None
    return data


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs of a JSON object as a dict.

    Raises:
        ValueError: if a name occurs twice: readers differ in which value they take.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} twice")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, {digits[:20]}...")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:20]}, which is not finite")
    return number


def read_plain(
    data: Any,
    kind: type[T],
    what: str,
    error: Callable[[str], Exception],
    *,
    newest: int | None = None,
    hook: Callable[[type, Any], Any] | None = None,
) -> T:
    """Build a dataclass, or another type, from JSON-compatible data.

    All fields have to be there, no others, and each of its type: lists for tuples, no true for 1, numbers finite and
    whole ones of 64 bits. What a class itself refuses is told with the field that holds it.

    Args:
        data: anything, such as what ``json.loads`` returns.
        what: what the message calls it, and who writes it.
        error: class of the exception.
        newest: format version that is known, if ``data`` has a ``format_version``.
        hook: makes a value of a type that is neither plain, a dataclass nor ``Measured``; may raise ValueError.

    Returns:
        The dataclass.

    Raises:
        Exception: an ``error`` that names the first bad field.
    """
    import msgspec

    if newest is not None:
        check_version(data, newest, what, error)
    try:
        _check_numbers(data, "")
        value: T = msgspec.convert(data, kind, dec_hook=partial(_decode, hook))
        _check_fields(data, value, "")
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as problem:
        words = f"expected {what}, got data with a bad field: {_in_words(problem)}; write them anew"
        raise error(words) from problem
    return value


def check_version(data: Any, newest: int, what: str, error: Callable[[str], Exception]) -> None:
    """Refuse data whose ``format_version`` is not known yet; arguments as for :func:`read_plain`."""
    version = data.get("format_version") if isinstance(data, Mapping) else None
    if isinstance(version, int) and version > newest:
        raise error(
            f"expected {what} of format version {newest} or older, got version {version}: update equisurgeon to read it"
        )


def _decode(hook: Callable[[type, Any], Any] | None, kind: type, data: Any) -> Any:
    if kind is Measured:
        if data is not None and (isinstance(data, bool) or not isinstance(data, int | float)):
            raise ValueError(f"expected a number or null, got {type(data).__name__}")
        return Measured(math.nan if data is None else data)
    if hook is None:
        raise NotImplementedError(f"no value of type {kind.__name__} can be read")
    return hook(kind, data)


def _in_words(problem: Exception) -> str:
    """Put the place first: "sites[0].shape: Expected `array`, got `int`"."""
    text, _, place = str(problem).partition(" - at `$")
    path = place.rstrip("`").removeprefix(".")
    return f"{path}: {text}" if path else text


def _check_numbers(data: Any, path: str) -> None:
    if isinstance(data, Mapping):
        for key, part in data.items():
            _check_numbers(part, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list | tuple):
        for index, part in enumerate(data):
            _check_numbers(part, f"{path}[{index}]")
    elif isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{path}: expected a finite number, got {data}")
    elif isinstance(data, int) and abs(data) > LARGEST_INT:
        raise ValueError(f"{path}: expected a number of 64 bits, got a longer one")


def _check_fields(data: Any, value: Any, path: str) -> None:
    """Refuse what is in the data and not in the value, or the other way round."""
    if isinstance(value, list | tuple) and isinstance(data, list | tuple):
        for index, (part, inner) in enumerate(zip(data, value, strict=True)):
            _check_fields(part, inner, f"{path}[{index}]")
    if dataclasses.is_dataclass(value):
        known = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        known = dict(value)
    else:
        return
    prefix = f"{path}." if path else ""
    for key in sorted(data.keys() ^ known.keys(), key=str):
        raise ValueError(f"{prefix}{key}: {'missing' if key in known else 'unknown'}")
    for key, inner in known.items():
        _check_fields(data[key], inner, f"{prefix}{key}")
