"""Tensors in safetensors files: a header is checked before anything is allocated, and values are read when used."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import CheckpointError, WriteError
from surgeon.files.atomic import atomic_file
from surgeon.files.open_file import OpenFile
from surgeon.support.imports import one_line
from surgeon.support.plain import parse_json

LARGEST_HEADER = 100 * 2**20
"""Of the safetensors format itself."""

_ADVICE = "it is damaged or not a checkpoint, fetch or save it again"
_DTYPES: Mapping[str, torch.dtype] = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "C64": torch.complex64},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz},
    **{"F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its shape and dtype as a tensor without values, and the offset of its first byte."""

    form: Tensor
    start: int


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by name: one is read when it is asked for, each time anew, and kept by who asked only.

    Args:
        entries: name to place.
        check: refuses damaged values; called before any is read.
    """

    def __init__(
        self, source: OpenFile, entries: Mapping[str, Entry], check: Callable[[], None] = lambda: None
    ) -> None:
        self._source, self._entries, self._check = source, dict(entries), check

    def __getitem__(self, name: str) -> Tensor:
        self._check()
        form, start = self._entries[name].form, self._entries[name].start
        tensor = torch.empty(form.shape, dtype=form.dtype, device="cpu")
        if tensor.numel():
            buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
            self._source.read_into(buffer, start, f"the tensor {name!r}")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def renamed(self, names: Mapping[str, str]) -> StoredTensors:
        """Return tensors under other names; ``names`` says for each new one which it has here."""
        return StoredTensors(self._source, {new: self._entries[name] for new, name in names.items()}, self._check)

    def forms(self) -> dict[str, Tensor]:
        """Return tensors of the same shapes and dtypes without values."""
        return {name: entry.form for name, entry in self._entries.items()}


def forms(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors of the same shapes and dtypes; of those in a file no value is read."""
    return tensors.forms() if isinstance(tensors, StoredTensors) else tensors


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Return tensors under other names, new one to old; of those in a file no value is read."""
    if isinstance(tensors, StoredTensors):
        return tensors.renamed(names)
    return {new: tensors[name] for new, name in names.items()}


def open_safetensors(source: OpenFile) -> tuple[StoredTensors, dict[str, str]]:
    """Check the header of a safetensors file against the file's size; return the tensors, and the strings in it.

    Raises:
        CheckpointError: if names occur twice, sizes do not fit, or ranges overlap or leave gaps; nothing was allocated.
    """
    try:
        size = source.size
        length = int.from_bytes(source.read(min(size, 8), "the length of the header"), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = parse_json(source.read(length, "the header", 8))
        if not isinstance(header, dict):
            raise ValueError(f"a header that is a {type(header).__name__}")
        metadata = header.pop("__metadata__", None) or {}
        ranges = {name: _range_of(name, entry) for name, entry in header.items()}
        _check_ranges(ranges, size - 8 - length)
        entries = {
            name: Entry(_form_of(header[name]), 8 + length + start) for name, (start, _) in sorted(ranges.items())
        }
        return StoredTensors(source, entries), {str(key): str(value) for key, value in metadata.items()}
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        where = str(source.path)
        raise CheckpointError(f"could not read {where!r} as safetensors ({_said(error)}): {_ADVICE}") from error


def _form_of(entry: Mapping[str, Any]) -> Tensor:
    return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")


def _said(error: Exception) -> str:
    return str(error) if type(error) is ValueError else one_line(error)[:200]


def _range_of(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return where a tensor's bytes are, checked against its shape and dtype."""
    shape, (start, end), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)) or end < start:
        raise ValueError(f"an unusable shape or range of {name[:80]!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"{name[:80]!r} of dtype {str(dtype)[:80]!r}, which is none of {', '.join(_DTYPES)}")
    if math.prod(shape) * _DTYPES[dtype].itemsize != end - start:
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
        tensors: name to tensor, any shape, any dtype that safetensors knows.
        metadata: strings to store in the header.

    Raises:
        ExistsError: if ``path`` exists and ``force`` is False.
        WriteError: if the system refuses, or a tensor has a layout or dtype that the format lacks.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_file(path, force=force) as temporary:
        for name, tensor in tensors.items():
            if what := unusable(tensor):
                raise WriteError(
                    f"could not write {str(path)!r}: expected dense tensors, got {name!r}, which is {what}: convert it "
                    "first"
                )
        try:
            save_file(independent_tensors(tensors), temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else errno.EIO
            raise OSError(number, os.strerror(number) if code else str(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise WriteError(f"could not write {str(path)!r} as safetensors: {one_line(error)}") from error


def unusable(tensor: Tensor, on_meta: bool = False) -> str:
    """Say why a tensor of a checkpoint cannot be read, compared and written bit by bit; nothing if it can.

    Args:
        on_meta: its values are elsewhere.
    """
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized or tensor.layout != torch.strided:
        return "quantized" if tensor.is_quantized else f"of the layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_meta and not on_meta:
        return "on the meta device, without values"
    return "" if tensor.dtype in _DTYPES.values() else f"of the dtype {str(tensor.dtype).removeprefix('torch.')}"


def finite(tensor: Tensor) -> Tensor:
    """Return which values are finite; torch itself cannot say so of floating numbers of 8 bits."""
    small = tensor.is_floating_point() and tensor.element_size() == 1
    return torch.isfinite(tensor.float() if small else tensor)


def same_bytes(left: Tensor, right: Tensor) -> bool:
    """Tell whether two dense tensors of any dtype have the same shape and the same bits, NaN included."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    flat = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return torch.equal(flat[0], flat[1])
