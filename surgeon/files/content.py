"""Text and JSON in files, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, PlanError
from surgeon.files.atomic import atomic_file
from surgeon.files.ordinary import bytes_of, opening_ordinary
from surgeon.support.plain import parse_json


def write_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """Write ``text`` as UTF-8, completely or not at all; errors as in :func:`atomic_file`."""
    with atomic_file(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, data: Any, *, force: bool = False) -> None:
    """Write :func:`json_text` of ``data``; errors as in :func:`atomic_file`."""
    write_text(path, json_text(data), force=force)


def json_text(data: Any) -> str:
    """Return ``data`` as indented JSON in its own key order; numbers that JSON does not have become null."""
    return json.dumps(json_compatible(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        PlanError: if the file is missing or holds something else; the message names line and column.
    """
    try:
        return parse_json(bytes_of(Path(path)))
    except OSError as error:
        raise PlanError(
            f"expected a JSON file at {str(path)!r}, but it cannot be read ({error}): check the path"
        ) from error
    except json.JSONDecodeError as error:
        raise PlanError(
            f"expected JSON in {str(path)!r}, but line {error.lineno}, column {error.colno} is not ({error.msg}): "
            "correct it"
        ) from error
    except ValueError as error:
        raise PlanError(f"expected JSON in {str(path)!r}, got {error}: correct it") from error


def json_compatible(value: Any) -> Any:
    """Return nested data with non-finite floats replaced by None and tuples by lists."""
    if isinstance(value, Mapping):
        return {str(key): json_compatible(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_compatible(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        with open(path, "rb", opener=opening_ordinary) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"could not read {str(path)!r}: {error.strerror or error}: check the path") from error
