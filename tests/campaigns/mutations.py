"""Hostile versions of a file: values put at places of its JSON, and bytes that were damaged or made up."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

RAW = "\ue000raw:{}\ue000"
"""Stands in JSON for text that ``json.dumps`` does not write."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**63) - 1, 10**400, "", " ", "0", "-1", "nan"),
    *([], {}, [[]], [None], {"": None}, ["x"] * 1000, {"format_version": 1}, list(range(2000))),
    *("x" * 100_000, "a/../../b", "/etc/passwd", "~", "con", ".", "..", "\x00", "a\x00b", "\x1b[31mred\x1b[0m\x07"),
    *("\x1b]0;title\x07", "\u202egnp.exe", "\u2028", "\ud800", "a\nb\rc", "<script>alert(1)</script>", "|a|`b`|[c](d)"),
    *("os:system", "builtins:exec", "hf://a/b", "😀", "\ufeff", "%s%n{0}{x}", "[" * 3000, "é" * 5000, "(" * 500),
)
TEXTS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 5000, "[" * 60_000 + "]" * 60_000, "1" * 4299)
"""Not JSON, or JSON that makes Python's reader raise."""
NESTED = '{"a":' * 30_000 + "1" + "}" * 30_000


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in JSON data, containers first."""
    yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def hostile_json(data: Any, draw: random.Random) -> str:
    """Return JSON data with one value replaced, removed, added, renamed or given twice."""
    data = copy.deepcopy(data)
    value = draw.choice((*VALUES, *(RAW.format(index) for index in range(len(TEXTS) + 1))))
    path = draw.choice([path for path in places(data) if path] or [()])
    if not path:
        return _text(value)
    *way, last = path
    holder = data
    for key in way:
        holder = holder[key]
    how = draw.choice(("set", "set", "set", "set", "remove", "add", "rename", "twice", "wrap"))
    if how == "set":
        holder[last] = value
    elif how == "wrap":
        holder[last] = draw.choice(([holder[last]], {"a": holder[last]}, str(holder[last]), [holder[last]] * 2))
    elif isinstance(holder, list):
        holder[:] = {"remove": holder[:last] + holder[last + 1 :], "add": [*holder, value]}.get(how, holder[::-1])
    elif how == "remove":
        del holder[last]
    else:
        names = [part for part in VALUES if isinstance(part, str)]
        name = last + RAW.format(0) if how == "twice" else draw.choice(names)
        holder[name] = holder.pop(last) if how == "rename" else value
    return _text(data)


def _text(data: Any) -> str:
    text = json.dumps(data)
    for index, raw in enumerate((*TEXTS, NESTED)):
        text = text.replace(json.dumps(RAW.format(index)), raw)
    return text.replace(json.dumps(RAW.format(0))[1:-1], "")  # a name that is now there twice


def hostile_bytes(content: bytes, draw: random.Random, first: int = 0) -> bytes:
    """Return bytes of which some were flipped, cut, put in, repeated or overwritten, most often near the begin."""
    size = len(content)
    reach = first or draw.choice((64, 1024, size))
    at = min(draw.randrange(max(1, min(reach, size))), max(0, size - 1))
    length = draw.choice((1, 1, 2, 4, 8, 100))
    made = draw.choice(
        (b"\x00" * length, b"\xff" * length, draw.randbytes(length), b"\x80\x02", b"PK\x03\x04", b"{", b'"', b"\x1b[2J")
    )
    how = draw.choice(("flip", "flip", "flip", "cut", "cut", "in", "over", "over", "again", "out", "swap"))
    if how == "flip":
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 3))):
            changed[min(at, size - 1)] ^= 1 << draw.randrange(8)
            at = draw.randrange(size)
        return bytes(changed)
    if how == "cut":
        return content[: draw.randrange(size)]
    if how == "swap":
        other = draw.randrange(size)
        low, high = sorted((at, other))
        return content[:low] + content[high:] + content[low:high]
    return {
        "in": content[:at] + made + content[at:],
        "over": content[:at] + made + content[at + len(made) :],
        "again": content[:at] + content[at : at + length] + content[at:],
        "out": content[:at] + content[at + length :],
    }[how]
