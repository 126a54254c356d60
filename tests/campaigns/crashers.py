"""What once led to a traceback, a message of a page, or control characters on the screen; each is tried again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DEEP, LONG, WIDE = "[" * 60_000 + "]" * 60_000, "9" * 5000, json.dumps("é" * 5000)
RED, HALF = json.dumps("\x1b[31mred\x07"), r'"\ud800"'

CRASHERS: tuple[tuple[str, Sequence[Any], str], ...] = (
    ("plan values", ("sites", 0, "name"), DEEP),
    ("plan values", ("sites", 0, "shape", 0), LONG),
    ("plan values", ("group",), HALF),
    ("configuration values", ("base", "keys_hash"), '"\\ufeff"'),
    ("configuration values", ("plan", "sites", 0, "\x1b]0;title\x07"), "1"),
    ("configuration values", ("plan", "sites", 0, "é" * 5000), "1"),
    ("configuration values", ("plan", "sites", 0, "rho_in"), WIDE),
    ("configuration values", ("plan", "sites", 0, "slot"), json.dumps("(" * 3000)),
    ("seal values", ("files",), DEEP),
    ("state values", ("judging", "direction"), json.dumps("x" * 100_000)),
    ("state page", ("a\nb\rc",), "0"),
    ("records page", ("validation", "mse"), "1e308"),
    ("certificate values", ("grade",), HALF),
    ("certificate values, signed again", ("details", "original", "file"), HALF),
    ("finished run", ("run",), DEEP),
    ("description of a comparison", ("settings", "\x00"), '"0"'),
    ("statement beside a file", ("args",), LONG),
    ("statement beside a file", ("factory",), WIDE),
    ("reference energies", ("H",), DEEP),
    ("reference energies", ("H",), "1" + "0" * 400),
    ("reference energies", ("\x1b[2J",), "1"),
    ("learning rates", ("sweep",), DEEP),
)
"""Reader, place in its JSON, and the JSON that is put there."""


def crashing(content: bytes, path: Sequence[Any], text: str) -> bytes:
    """Return JSON with a text at a place in it; of lines, in the first one."""
    first, *rest = content.splitlines() if content.count(b"\n{") else [content]
    data: Any = json.loads(first)
    holder, (*way, last) = data, path
    for key in way:
        holder = holder[key]
    holder[last] = "@here@"
    return b"\n".join([json.dumps(data).replace('"@here@"', text).encode(), *rest])
