"""Archives of torch.save: what is refused before torch reads them, and where in the file their tensors are."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping

import torch
from torch import Tensor

from surgeon.errors import CheckpointError
from surgeon.files.open_file import OpenFile
from surgeon.files.tensors import Entry, StoredTensors, unusable
from surgeon.support.imports import one_line

ADVICE = "it is damaged or not a checkpoint, fetch or save it again"


def check_archive(source: OpenFile) -> None:
    """Compare the checksums, which torch.load does not: it would return flipped bits as weights."""
    path = source.path
    try:
        with source.stream() as stream, zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(
                    f"{str(path)!r} is a TorchScript archive, which is code, as models are deployed: give the "
                    "checkpoint that it was made from, or a state_dict"
                )
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
            if packed:  # a few bytes could become any number of them
                raise CheckpointError(
                    f"expected an archive as torch.save writes it, but {packed[0][:80]!r} in {str(path)!r} is "
                    "compressed: write it again with torch.save"
                )
            bad = [name for name in names if not _record_is_sound(archive, name)]
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory raises whatever its fields lead to
        raise CheckpointError(f"could not read {str(path)!r} as an archive ({one_line(error)}): {ADVICE}") from error
    if bad and len(bad) < len(names):  # torch can write without checksums: then none of them fits
        raise CheckpointError(f"the checksum of {bad[0]!r} in {str(path)!r} is wrong: {ADVICE}")


def refuse_package(source: OpenFile) -> None:
    """Refuse an archive of torch.package, which holds code, and models whose classes nothing else can name."""
    with source.stream() as stream, zipfile.ZipFile(stream) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if ".data/extern_modules" in names:
        pickles = [name for name in names if name.endswith(".pkl")]
        raise CheckpointError(
            f"{str(source.path)!r} is an archive of torch.package, which holds code besides "
            f"{', '.join(pickles[:3]) or 'no model'}, and no adapter knows it: save the model's `state_dict()`, and "
            "give `--model module:function` with what opens the archive and returns the model"
        )


def _record_is_sound(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as record:
            while record.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def has_native_order(source: OpenFile) -> bool:
    """Tell whether numbers lie in an archive as this machine has them; torch turns others round while it loads them."""
    with source.stream() as stream, zipfile.ZipFile(stream) as archive:
        orders = {archive.read(name) for name in archive.namelist() if name.endswith("byteorder")}
    return orders <= {sys.byteorder.encode()}


def stored_in_archive(source: OpenFile, tensors: Mapping[str, Tensor]) -> StoredTensors | None:
    """Return tensors that are read when they are used.

    Args:
        tensors: as ``torch.load`` gives them under a ``FakeTensorMode``, which says where their bytes begin.

    Returns:
        The same names; None if one of them is not a plain range of bytes in the file.
    """
    with source.stream() as stream, zipfile.ZipFile(stream) as archive:
        sizes = {_begin_of(source, info): info.file_size for info in archive.infolist()}
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage() if not unusable(tensor) else None
        begin = getattr(storage, "_checkpoint_offset", None)
        start, end = ((tensor.storage_offset() + more) * tensor.element_size() for more in (0, tensor.numel()))
        plain = tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
        if not plain or begin is None or end > sizes.get(begin, 0):
            return None
        entries[name] = Entry(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), begin + start)
    return StoredTensors(source, entries)


def _begin_of(source: OpenFile, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a record begin: after its own header, whose length the directory does not tell."""
    lengths = source.read(4, "a record's header", info.header_offset + 26)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
