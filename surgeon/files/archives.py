"""Archives of torch.save: what is refused before torch reads them, and where in the file their tensors are."""

from __future__ import annotations

import functools
import io
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._weights_only_unpickler import Unpickler

from surgeon.errors import CheckpointError
from surgeon.files.open_file import OpenFile
from surgeon.files.tensors import Entry, StoredTensors, unusable
from surgeon.support.imports import one_line

ADVICE = "it is damaged or not a checkpoint, fetch or save it again"


def check_archive(source: OpenFile) -> Callable[[], None]:
    """Compare the checksums, which torch.load does not: it would return flipped bits as weights.

    Returns:
        What compares those of the values as well, the first time that it is called: there can be a lot of them, and a
        file that is not for this model needs none.

    Raises:
        CheckpointError: if one is wrong, or the file is no archive as ``torch.save`` writes it.
    """
    path = source.path
    with _opened(source) as archive:
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
        values = [name for name in names if "/data/" in name]
        others = _sound(archive, [name for name in names if "/data/" not in name])
    _refuse_damage(path, others)

    @functools.cache
    def compare_values() -> None:
        try:
            with _opened(source) as archive:
                found = {**others, **_sound(archive, values)}
        finally:
            source.require_unchanged()  # one that is being written to looks damaged
        _refuse_damage(path, found)

    return compare_values


@contextmanager
def _opened(source: OpenFile) -> Iterator[zipfile.ZipFile]:
    try:
        with source.stream() as stream, zipfile.ZipFile(stream) as archive:
            yield archive
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory raises whatever its fields lead to
        what = f"could not read {str(source.path)!r} as an archive ({one_line(error)})"
        raise CheckpointError(f"{what}: {ADVICE}") from error


def _refuse_damage(path: Path, sound: Mapping[str, bool]) -> None:
    bad = [name for name, fits in sound.items() if not fits]
    if bad and len(bad) < len(sound):  # torch can write without checksums: then none of them fits
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


def _sound(archive: zipfile.ZipFile, names: Iterable[str]) -> dict[str, bool]:
    """Tell of each record whether its checksum fits."""
    return {name: _record_is_sound(archive, name) for name in names}


def _record_is_sound(archive: zipfile.ZipFile, name: str) -> bool:
    try:
        with archive.open(name) as record:
            while record.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def without_values(source: OpenFile) -> Any:
    """Load an archive that holds no code, with tensors on the meta device whose storages know where their bytes begin.

    Torch itself tells places only as it would have chosen them, which are others in archives that something else wrote.

    Raises:
        Exception: of any kind, where torch has to read all of it, or refuses to.
    """
    with source.stream() as stream:
        reader: Any = torch._C.PyTorchFileReader(stream)
        kinds: Any = torch
        if reader.has_record("byteorder") and reader.get_record("byteorder").decode() != sys.byteorder:
            raise ValueError("numbers that have to be turned round")

        def storage(saved: tuple[Any, ...]) -> Any:
            _, kind, key, _, count = saved
            dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            if count * dtype.itemsize > reader.get_record_size(f"data/{key}"):
                raise ValueError("a storage larger than its record")
            untyped = kinds.UntypedStorage(count * dtype.itemsize, device="meta")
            untyped.begin = reader.get_record_offset(f"data/{key}")
            return kinds.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)

        program = reader.get_record("data.pkl")
        if b"_rebuild_sparse" in program:
            raise ValueError("tensors that torch would look at with the next file it loads")
        unpickler: Any = Unpickler(io.BytesIO(program), encoding="utf-8")
        unpickler.persistent_load = storage
        return unpickler.load()


def stored_in_archive(
    source: OpenFile, tensors: Mapping[str, Tensor], check: Callable[[], None]
) -> StoredTensors | None:
    """Return tensors that are read when they are used.

    Args:
        tensors: of :func:`without_values`.
        check: refuses damaged values.

    Returns:
        The same names; None if one of them is not a plain range of bytes in the file.
    """
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        if unusable(tensor, on_meta=True):
            return None
        storage, size = tensor.untyped_storage(), tensor.element_size()
        start, end = ((tensor.storage_offset() + more) * size for more in (0, tensor.numel()))
        plain = tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
        if not plain or not hasattr(storage, "begin") or end > storage.nbytes():
            return None
        form = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # without the attributes of a stranger's
        entries[name] = Entry(form, storage.begin + start)
    return StoredTensors(source, entries, check)
