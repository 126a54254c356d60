"""Write new weights back into the container that the original checkpoint came in."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, SurgeonError, WriteError
from surgeon.files.atomic import atomic_file
from surgeon.files.checkpoint import Checkpoint, KeepsFiles
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import forms, same_bytes, write_tensors
from surgeon.opening.loading import load_into
from surgeon.registry import installed_adapters


def write_container(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: str | Path, force: bool = False
) -> None:
    """Write the original container with only the weights replaced, then open it again and compare bytes.

    Key order, prefix, the rest of a nested dict, and ties between tensors are kept.

    Args:
        checkpoint: the original, as opened.
        tensors: the new weights; the original's keys (without its prefix), shapes and dtypes.

    Raises:
        CheckpointError: if keys, shapes or dtypes are not the original's.
        ExistsError: if ``path`` exists and ``force`` is False.
        WriteError: if the system refuses, or what was written does not read back as the same bytes.
    """
    if checkpoint.converted:
        raise CheckpointError(
            f"expected weights in the form of {str(checkpoint.path)!r}, but {checkpoint.converted}: only its library "
            "could turn them back, export without --container"
        )
    _check_same_form(checkpoint, tensors)
    prefixed = {checkpoint.prefix + key: tensors[key] for key in checkpoint.tensors}
    with atomic_file(path, force=force) as temporary:
        if checkpoint.container == "safetensors":
            write_tensors(temporary, prefixed, checkpoint.metadata, force=True)
        elif checkpoint.library:
            _write_by_library(checkpoint, tensors, temporary)
        else:
            save_content(_new_content(checkpoint, prefixed), temporary)
        _compare(checkpoint, tensors, temporary, Path(path))


def _write_by_library(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Let the adapter that opened a file write it with other weights."""
    adapter = installed_adapters().get(checkpoint.library)
    if not isinstance(adapter, KeepsFiles):
        raise CheckpointError(
            f"expected the adapter {checkpoint.library!r}, which opened {str(checkpoint.path)!r}, to write it again, "
            "but it is not installed: install the package that provides it"
        )
    adapter.write_file(checkpoint, tensors, path)


def _check_same_form(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    where, stored = str(checkpoint.path), forms(checkpoint.tensors)
    for key in [*checkpoint.tensors, *tensors]:
        if key not in tensors or key not in checkpoint.tensors:
            owner = "original" if key in checkpoint.tensors else "new weights"
            raise CheckpointError(f"expected the keys of {where!r}, but only the {owner} has {key}: export without it")
        old, new = stored[key], tensors[key]
        if old.shape != new.shape or old.dtype != new.dtype:
            raise CheckpointError(
                f"expected {key} as {tuple(old.shape)} {old.dtype} like in {where!r}, "
                f"got {tuple(new.shape)} {new.dtype}: convert the weights back first"
            )


def _compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that hold no more storage than they show; equal views stay one tensor, as ties do."""
    copies: dict[tuple[Any, ...], Tensor] = {}
    result = {}
    for key, tensor in tensors.items():
        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (key,)
        result[key] = copies.setdefault(view, tensor.detach().cpu().clone())
    return result


def _new_content(checkpoint: Checkpoint, prefixed: Mapping[str, Tensor]) -> Any:
    content = checkpoint.content()
    if checkpoint.entry is None:
        return _replaced(content, prefixed)
    content = copy.copy(content)
    content[checkpoint.entry] = _replaced(content[checkpoint.entry], prefixed)
    return content


def _replaced(holder: Any, prefixed: Mapping[str, Tensor]) -> Any:
    """Return a copy of a module or state dict with these weights."""
    if isinstance(holder, nn.Module):
        module = copy.deepcopy(holder)
        load_into(module, prefixed, "the new weights")
        return module
    result = copy.copy(holder)
    for key, tensor in _compact(prefixed).items():
        old = holder[key]
        result[key] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    return result


def save_content(content: Any, path: Path) -> None:
    """Write an object with torch.save.

    Raises:
        OSError: if the system refuses.
        WriteError: if it cannot be pickled.
    """
    try:
        with open(path, "wb") as handle:
            torch.save(content, handle)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is not None:  # torch's zip writer hides the system's error behind its own
            raise cause from error
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise WriteError(f"could not write {str(path)!r}: its content cannot be pickled ({error})") from error


def _compare(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], written: Path, target: Path) -> None:
    try:
        again = open_checkpoint(written, trust_pickle=checkpoint.needs_trust, entry=checkpoint.entry)
    except SurgeonError as error:
        raise WriteError(f"could not write {str(target)!r}: the new file does not open again ({error})") from error
    wrong = [key for key in tensors if key not in again.tensors or not same_bytes(tensors[key], again.tensors[key])]
    ordered = checkpoint.container == "safetensors" or list(again.tensors) == list(checkpoint.tensors)
    if wrong or not ordered or again.prefix != checkpoint.prefix:
        detail = f"{len(wrong)} tensors differ, first {wrong[0]}" if wrong else "the keys are in another order"
        raise WriteError(f"could not write {str(target)!r}: read back, {detail}: export to safetensors instead")
