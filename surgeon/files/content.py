"""What is written into files: text, JSON and tensors, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import CheckpointError, PlanError, WriteError
from surgeon.files.atomic import atomic_file


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
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"expected a JSON file at {str(path)!r}, but it cannot be read ({error}): check the path"
        ) from error
    except json.JSONDecodeError as error:
        raise PlanError(
            f"expected JSON in {str(path)!r}, but line {error.lineno}, column {error.colno} is not ({error.msg}): "
            "correct it"
        ) from error


def json_compatible(value: Any) -> Any:
    """Return nested data with non-finite floats replaced by None and tuples by lists."""
    if isinstance(value, Mapping):
        return {str(key): json_compatible(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_compatible(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def independent_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors of which no two share storage, so that a format without aliases keeps every key.

    Args:
        tensors: name to tensor, any shape and dtype.

    Returns:
        The same names in the same order; values that share nothing are not copied.
    """
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return result


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, force: bool = False
) -> None:
    """Write tensors as safetensors, completely or not at all.

    Tensors that share storage are stored as independent copies, so that every key is in the file and a plain strict
    load works everywhere.

    Args:
        path: the file to write.
        tensors: name to tensor, any shape, any dtype that safetensors knows.
        metadata: strings to store in the header.
        force: replace an existing file.

    Raises:
        ExistsError: if ``path`` exists and ``force`` is False.
        WriteError: if the system refuses, or a tensor has a layout or dtype that the format lacks.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_file(path, force=force) as temporary:
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized:
                raise WriteError(
                    f"could not write {str(path)!r}: expected dense tensors, got {name!r} with layout {tensor.layout} "
                    f"and dtype {tensor.dtype}: convert it first"
                )
        try:
            save_file(independent_tensors(tensors), temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number) if code else str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise WriteError(f"could not write {str(path)!r} as safetensors: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"could not read {str(path)!r}: {error.strerror or error}: check the path") from error
