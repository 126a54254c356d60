"""Checkpoint files in a form of their own library's, which an adapter reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from surgeon.errors import CheckpointError
from surgeon.files.checkpoint import Checkpoint
from surgeon.registry import installed_adapters


@runtime_checkable
class KeepsFiles(Protocol):
    """An adapter whose library keeps more in a file than named tensors, or keeps these in its own way.

    For example the settings from which the architecture is built, averaged weights beside the raw ones, or code.
    """

    def open_file(self, path: Path, trust_pickle: bool) -> Checkpoint | None:
        """Return what a file of this library holds; None for all others, which should not take long.

        The tensors are those that the library itself would use, under the keys of the model; ``metadata`` may hold the
        statement that builds it.

        Raises:
            TrustError: if the file can only be opened by running code inside, and ``trust_pickle`` is False.
            CheckpointError: if it is of this library and cannot be used.
        """
        ...

    def write_file(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the file that :meth:`open_file` opened once more, with other weights and nothing else changed."""
        ...


def open_by_library(path: Path, trust_pickle: bool) -> Checkpoint | None:
    """Return what the first adapter that knows a file says it holds; None if none does."""
    for name, adapter in installed_adapters().items():
        found = adapter.open_file(path, trust_pickle) if isinstance(adapter, KeepsFiles) else None
        if found is not None:
            if found.library != name:
                raise CheckpointError(f"the adapter {name} opened {str(path)!r} as a file of {found.library!r}")
            return found
    return None


def write_by_library(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Let the adapter that opened a file write it with other weights.

    Raises:
        CheckpointError: if it is not installed.
    """
    adapter = installed_adapters().get(checkpoint.library)
    if not isinstance(adapter, KeepsFiles):
        raise CheckpointError(
            f"expected the adapter {checkpoint.library!r}, which opened {str(checkpoint.path)!r}, to write it again, "
            "but it is not installed: install the package that provides it"
        )
    adapter.write_file(checkpoint, tensors, path)
