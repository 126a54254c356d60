"""Tensors in a safetensors file: its header is checked before anything is allocated, and values are read when used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any

from torch import Tensor

from surgeon.errors import CheckpointError
from surgeon.imports import one_line

LARGEST_HEADER = 100 * 2**20
"""Of the safetensors format itself."""

_PIECE_BYTES = 4 * 2**20
_ADVICE = "it is damaged or not a checkpoint, fetch or save it again"
_BITS: Mapping[str, int] = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "BOOL": 8, "I8": 8, "U8": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


Index = slice | EllipsisType
Piece = tuple[str, Index, Tensor]
"""A tensor's name, what part of it this is, and the values."""


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, as views of the mapped file: a value takes memory once it is looked at.

    Args:
        path: a safetensors file, the header of which was checked.
        names: name to name in the file; default all, as they are.
    """

    def __init__(self, path: Path, names: Mapping[str, str] | None = None) -> None:
        from safetensors import safe_open

        self.path, self._file = path, identity_of(path)
        with safe_open(path, framework="pt", device="cpu") as handle:
            self._names = dict(names or {name: name for name in handle.keys()})  # noqa: SIM118 (not a dict)
            self._views: dict[str, Tensor] = {name: handle.get_tensor(stored) for name, stored in self._names.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def without_prefix(self, prefix: str) -> StoredTensors:
        """Return the same tensors with ``prefix`` removed from every name."""
        return StoredTensors(self.path, {name.removeprefix(prefix): stored for name, stored in self._names.items()})

    def pieces(self) -> Iterator[Piece]:
        """Yield all values piece by piece; memory of those that the caller has let go of is given back.

        Pages of a mapped file count as memory of the process for as long as the mapping exists, so every few pieces get
        a mapping of their own. If the file was replaced meanwhile, the old one is read.
        """
        from safetensors import safe_open

        if identity_of(self.path) != self._file:
            yield from _whole(self)
            return
        for group in self._groups():
            with safe_open(self.path, framework="pt", device="cpu") as handle:
                for name, index in group:
                    stored = self._names[name]
                    whole = index is ...
                    yield name, index, handle.get_tensor(stored) if whole else handle.get_slice(stored)[index]

    def _groups(self) -> Iterator[Sequence[tuple[str, Index]]]:
        """Yield small tensors together, and large ones cut along their first axis."""
        group: list[tuple[str, Index]] = []
        size = 0
        for name, view in self._views.items():
            if view.nbytes > _PIECE_BYTES and view.shape[0] > 1:
                rows = max(1, _PIECE_BYTES * view.shape[0] // view.nbytes)
                yield from ([(name, slice(start, start + rows))] for start in range(0, view.shape[0], rows))
                continue
            group.append((name, ...))
            size += view.nbytes
            if size >= _PIECE_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Yield all values as ``name, index, piece``, in a way that keeps little memory if they are in a file."""
    yield from tensors.pieces() if isinstance(tensors, StoredTensors) else _whole(tensors)


def _whole(tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    return ((name, ..., tensor) for name, tensor in tensors.items())


def identity_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written to; None if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_header(path: Path) -> dict[str, str]:
    """Check the header of a safetensors file against the file's size, and return the strings in it.

    Raises:
        CheckpointError: if names occur twice, sizes do not fit, or ranges overlap or leave gaps; nothing was allocated.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(handle.read(length), object_pairs_hook=unique_names)
        if not isinstance(header, dict):
            raise ValueError(f"a header that is a {type(header).__name__}")
        metadata = header.pop("__metadata__", None) or {}
        _check_ranges({name: _range_of(name, entry) for name, entry in header.items()}, size - 8 - length)
        return {str(key): str(value) for key, value in metadata.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"could not read {str(path)!r} as safetensors ({_said(error)}): {_ADVICE}") from error


def _said(error: Exception) -> str:
    return str(error) if type(error) is ValueError else one_line(error)[:200]


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


def _range_of(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return where a tensor's bytes are, checked against its shape and dtype."""
    shape, (start, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)) or end < start:
        raise ValueError(f"an unusable shape or range of {name[:80]!r}")
    if dtype in _BITS and math.prod(shape) * _BITS[dtype] != 8 * (end - start):
        raise ValueError(f"{name[:80]!r} of shape {shape} and dtype {dtype} in {end - start:,} bytes")
    return start, end


def _check_ranges(ranges: Mapping[str, tuple[int, int]], size: int) -> None:
    place = 0
    for name, (start, end) in sorted(ranges.items(), key=lambda item: item[1]):
        if start != place:
            raise ValueError(f"bytes of {name[:80]!r} that overlap others or leave a gap")
        place = end
    if place != size:
        raise ValueError(f"{place:,} bytes of tensors announced, {size:,} there")
