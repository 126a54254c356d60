"""Open a checkpoint of any common container, by content and without running code, and load it strictly."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, TrustError
from surgeon.files.archives import ADVICE, check_archive, refuse_package, stored_in_archive, without_values
from surgeon.files.checkpoint import Checkpoint, Container, KeepsFiles
from surgeon.files.open_file import OpenFile
from surgeon.files.scalars import stand_ins
from surgeon.files.tensors import StoredTensors, forms, open_safetensors, unusable
from surgeon.registry import installed_adapters
from surgeon.support.imports import close_names, importable, one_line, unchanged_environment
from surgeon.support.memory import installed
from surgeon.support.modes import each_with

_WRAPPERS = ("module.", "_orig_mod.")
_USUAL_ENTRIES = frozenset(
    ["state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"]
    + ["ema", "ema_state_dict", "ema_model", "model_ema"]
)
_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""At the begin of what torch.save wrote before it wrote archives: a number that it pickles first."""


def open_checkpoint(
    path: str | Path, *, trust_pickle: bool = False, entry: str | None = None, may_be_empty: bool = False
) -> Checkpoint:
    """Open a checkpoint; its content, not its file name, decides what it is.

    Args:
        path: a safetensors file or anything that ``torch.save`` wrote.
        trust_pickle: allow a file that can only be opened by running the code inside (whole modules).
        entry: which entry of a nested dict holds the weights, if there are several.
        may_be_empty: take a file without any tensor.

    Returns:
        The tensors and everything needed to write the same container again.

    Raises:
        TrustError: if the file needs pickle and ``trust_pickle`` is False; nothing in it was run.
        CheckpointError: if the file is missing, damaged, ambiguous, or holds no named tensors.
    """
    path = Path(path)
    source = _open_source(path)
    try:
        checkpoint = _read(source, trust_pickle, entry)
        if not (checkpoint.tensors or may_be_empty):
            raise CheckpointError(
                f"expected a checkpoint with tensors, but {str(path)!r} holds none: choose another file"
            )
        _refuse_unusable(checkpoint)
        checkpoint = replace(checkpoint, hashed=functools.cache(source.sha256))
    except Exception:
        source.require_unchanged(by_name=True)  # one that is being written to looks damaged, in any library's words
        raise
    source.require_unchanged(by_name=bool(checkpoint.library))
    return checkpoint


def _refuse_unusable(checkpoint: Checkpoint) -> None:
    """Refuse at once what could not be written in the end."""
    for name, tensor in () if isinstance(checkpoint.tensors, StoredTensors) else checkpoint.tensors.items():
        if what := unusable(tensor):
            raise CheckpointError(
                f"expected dense tensors of usual numbers in {str(checkpoint.path)!r}, but {name!r} is {what}: save a "
                "state_dict in which it is dense, or left out where the model does without it"
            )


def _read(source: OpenFile, trust_pickle: bool, entry: str | None) -> Checkpoint:
    path, kind = source.path, _kind_of(source)
    if kind == "safetensors":
        tensors, metadata = open_safetensors(source)
        prefix = _prefix_of(tensors)
        stripped = tensors.renamed({name.removeprefix(prefix): name for name in tensors})
        return Checkpoint(path, stripped, "safetensors", prefix=prefix, metadata=metadata)
    check_values = check_archive(source) if kind == "zip" else lambda: None
    known = _open_by_library(path, trust_pickle)
    if known is None and kind == "zip":
        refuse_package(source)
        known = _open_archive(source, entry, check_values)
        if known is not None:
            return known
    if known is None:
        _refuse_too_large(source)
    check_values()
    return known or _from_content(path, *_read_torch(source, trust_pickle, kind), entry)


def _refuse_too_large(source: OpenFile) -> None:
    """Refuse a file that has to be read all at once and is larger than the memory: the system would end the process."""
    if source.size > installed():
        raise CheckpointError(
            f"expected a file that is read tensor by tensor, or fits into the {installed() / 1e9:.0f} GB of memory, "
            f"but {str(source.path)!r} has {source.size / 1e9:,.0f} GB and torch.save's old format, or more than "
            "named tensors in it: save its state_dict once more, on a larger machine"
        )


def _open_archive(source: OpenFile, entry: str | None, check_values: Callable[[], None]) -> Checkpoint | None:
    """Open what torch.save wrote without reading values before they are used; None where all have to be read."""
    try:
        with torch.serialization.safe_globals(stand_ins()):
            found = _from_content(source.path, without_values(source), False, entry)
        tensors = stored_in_archive(source, found.tensors, check_values)
    except Exception:  # the ordinary way says in words what is wrong with a file
        return None
    if tensors is None:
        return None
    return replace(found, tensors=tensors, content=lambda: _read_torch(source, False, "zip")[0])


def _open_by_library(path: Path, trust_pickle: bool) -> Checkpoint | None:
    """Return what the first adapter that knows a file says it holds; None if none does."""
    for name, adapter in installed_adapters().items():
        found = adapter.open_file(path, trust_pickle) if isinstance(adapter, KeepsFiles) else None
        if found is not None:
            if found.library != name:
                raise CheckpointError(f"the adapter {name} opened {str(path)!r} as a file of {found.library!r}")
            return found
    return None


def _open_source(path: Path) -> OpenFile:
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise CheckpointError(
            f"expected a checkpoint file, but {str(path)!r} is a folder: name a file in it, it holds "
            f"{', '.join(names[:10]) or 'no file'}"
        )
    try:
        return OpenFile(path)
    except FileNotFoundError as error:
        raise CheckpointError(_missing(path)) from error
    except OSError as error:
        raise CheckpointError(f"could not read {str(path)!r}: {error.strerror or error}: check the path") from error


def _kind_of(source: OpenFile) -> Literal["safetensors", "zip", "pickle"]:
    path, head = source.path, source.read(min(source.size, 64), "its begin")
    if not head:
        raise CheckpointError(f"expected a checkpoint, but {str(path)!r} is empty: fetch or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{str(path)!r} is only a pointer of Git LFS: fetch the real file with `git lfs pull`")
    archive = head.startswith(b"PK\x03\x04")  # also a length of a header, but other readers would open the archive
    if not archive and (head[8:9] == b"{" or path.suffix == ".safetensors"):
        return "safetensors"
    if archive:
        return "zip"
    if head.startswith(b"\x80"):
        if _LEGACY not in head:
            raise CheckpointError(
                f"expected a file written by torch.save, but {str(path)!r} is another pickle, as of pickle.dump or "
                "joblib, or damaged: open it where you trust it, and write its state_dict with torch.save"
            )
        return "pickle"
    raise CheckpointError(
        f"expected safetensors or a file written by torch.save, but {str(path)!r} starts with {head[:16]!r}: {ADVICE}"
    )


def _missing(path: Path) -> str:
    folder = path.parent
    if path.is_symlink():
        return f"{str(path)!r} is a link to {os.readlink(path)!r}, which is not there: mend the link, or name the file"
    if not folder.is_dir():
        return f"there is no checkpoint {str(path)!r}, nor a folder {str(folder)!r}: check the path"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return f"there is no checkpoint {str(path)!r}: check the name, its folder holds {close_names(path.name, names)}"


def read_torch(path: Path, trust_pickle: bool, kind: str = "zip") -> tuple[Any, bool]:
    """Return the object in a file of torch.save, and whether code had to be run to get it.

    Raises:
        TrustError: if code would have to be run and ``trust_pickle`` is False.
        CheckpointError: if the file is damaged, or its code fails.
    """
    return _read_torch(_open_source(path), trust_pickle, kind)


def _read_torch(source: OpenFile, trust_pickle: bool, kind: str) -> tuple[Any, bool]:
    path = source.path
    try:
        return _load_plain(source), False
    except Exception as error:
        needed = _refused_code(error, sound=kind == "zip")
        if needed is None:
            raise CheckpointError(f"could not read {str(path)!r} ({_detail(error)}): {ADVICE}") from error
        if not trust_pickle:
            raise TrustError(
                f"{str(path)!r} can only be opened by running code inside it ({needed}): "
                "for files that you trust, and only for them, allow it with `--trust-pickle`"
            ) from error
    return _read_trusted(source), True


def _load_plain(source: OpenFile) -> Any:
    """Load what holds no code."""
    with source.stream() as stream, warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins()):
        warnings.simplefilter("ignore")  # an unusual pickle protocol; what follows from it is reported elsewhere
        return torch.load(stream, map_location="cpu", weights_only=True, mmap=False)


def _refused_code(error: Exception, sound: bool) -> str | None:
    """Return what the safe reader refused to run, or None if the file is damaged instead.

    Args:
        error: what the safe reader raised.
        sound: whether checksums show that the bytes are as they were written.
    """
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = re.search(r"(?:GLOBAL|unrecognized function|but got) (?:<[a-z -]*)?'?([\w.]+)", str(error))
    if named is not None:
        return f"it names {named[1]}"
    return _detail(error) if sound else None


def _read_trusted(source: OpenFile) -> Any:
    path = source.path
    try:
        with (
            source.stream() as stream,
            warnings.catch_warnings(),
            importable(Path.cwd()),
            unchanged_environment(),
            redirect_stdout(io.StringIO()),
            scripts_on_the_cpu(),
        ):
            warnings.simplefilter("ignore")  # of the libraries whose code is run, as is what they print
            return torch.load(stream, map_location="cpu", weights_only=False, mmap=False)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{str(path)!r} needs the module {error.name!r}, which is not installed: install it, or run from its folder"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"could not open {str(path)!r} ({one_line(error)}): it is damaged, or needs another version of its library"
        ) from error


def scripts_on_the_cpu() -> AbstractContextManager[None]:
    """Open TorchScript on the CPU that a pickled module holds as bytes, as those of e3nn do.

    Such a module opens it by itself and does not know of ``torch.load``'s ``map_location``, so that a file written on a
    GPU would open on machines with one only.
    """
    return each_with([torch.jit], "load", functools.partial(torch.jit.load, map_location="cpu"))


def _detail(error: BaseException) -> str:
    """Return the informative part of one of torch's long messages."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    inner = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    return " ".join((inner[1] if inner else text).split()).split(". ")[0][:200] or type(error).__name__


def _named_tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _is_state_dict(content: Any) -> bool:
    if isinstance(content, nn.Module):
        return True
    return bool(_named_tensors(content)) and len(_named_tensors(content)) == len(content)


def _from_content(path: Path, content: Any, needs_trust: bool, entry: str | None) -> Checkpoint:
    if not isinstance(content, Mapping | nn.Module):
        raise CheckpointError(
            f"expected a dict of named tensors in {str(path)!r}, got {type(content).__name__}: save a state_dict"
        )
    chosen = _choose_entry(path, content, entry) if isinstance(content, Mapping) else None
    inner = content if chosen is None or isinstance(content, nn.Module) else content[chosen]
    module = inner if isinstance(inner, nn.Module) else None
    named = _named_tensors(inner if module is None else module.state_dict())
    prefix = _prefix_of(named)
    tensors = {name.removeprefix(prefix): value for name, value in named.items()}
    container: Container = "nested" if chosen is not None else "state_dict" if module is None else "module"
    extras: dict[str, Any] = {}
    if isinstance(content, Mapping):
        used = {chosen} if chosen is not None else {key for key, value in content.items() if isinstance(value, Tensor)}
        extras = {str(key): value for key, value in content.items() if key not in used}
    return Checkpoint(
        path,
        tensors,
        container,
        chosen,
        extras,
        prefix,
        module=module,
        needs_trust=needs_trust,
        content=lambda: content,
    )


def _choose_entry(path: Path, content: Mapping[Any, Any], entry: str | None) -> str | None:
    """Return the key of the weights in a nested dict; None if the dict itself holds them."""
    candidates = [key for key, value in content.items() if isinstance(key, str) and _is_state_dict(value)]
    if entry is not None:
        if entry not in candidates:
            raise CheckpointError(
                f"expected weights under {entry!r} in {str(path)!r}, found none: entries with weights are "
                f"{', '.join(candidates) or 'none'}"
            )
        return entry
    usual = [key for key in candidates if key in _USUAL_ENTRIES]
    for choice in (candidates, usual):
        if len(choice) == 1:
            return choice[0]
    if candidates:
        raise CheckpointError(
            f"expected one set of weights in {str(path)!r}, found several ({', '.join(candidates)}): "
            "name one with `--entry`"
        )
    return None


def _prefix_of(names: Iterable[str]) -> str:
    """Return the ``module.`` and ``_orig_mod.`` with which all names start."""
    rest, prefix = list(names), ""
    while rest:
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in rest)), None)
        if wrapper is None:
            break
        rest = [name.removeprefix(wrapper) for name in rest]
        prefix += wrapper
    return prefix


def keys_hash(state_dict: Mapping[str, Tensor]) -> str:
    """Return a fingerprint of the names, shapes and dtypes of a state dict.

    The names are sorted first, because safetensors does not keep their order.

    Args:
        state_dict: name to tensor, any shape and dtype.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(forms(state_dict).items()):
        digest.update(f"{key}\0{tuple(tensor.shape)}\0{tensor.dtype}\n".encode())
    return digest.hexdigest()
