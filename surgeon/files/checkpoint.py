"""What a checkpoint file holds, and adapters for files in a form of their library's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from surgeon.files.address import HubPath
from surgeon.files.tensors import renamed

Container = Literal["safetensors", "state_dict", "nested", "module"]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        tensors: name to tensor, on the CPU, without ``prefix``, in the file's order.
        container: "safetensors", a plain "state_dict", a "nested" dict that holds one, or a whole "module".
        entry: the key under which a nested dict holds the weights.
        extras: the rest of a nested dict, and entries of a state dict that are not tensors.
        prefix: ``module.`` and ``_orig_mod.`` in front of every key, as wrappers leave them; removed from ``tensors``.
        metadata: the strings in a safetensors header.
        hashed: returns the SHA-256 of the file's bytes, which is taken when it is first asked for.
        module: the module itself, if the file holds one and was trusted.
        needs_trust: True if the file could only be opened by running the code inside.
        content: returns the object in the file, from which the container is rebuilt; nothing for safetensors.
        origin: where it was downloaded from, with repository, commit and file; None for a local file.
        library: name of the adapter that opened the file and writes it again; empty for the usual containers.
        converted: in words, how ``tensors`` differ from those in the file, if a loader of the user's gave them.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    container: Container
    entry: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: Callable[[], str] = field(default=lambda: "", repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    needs_trust: bool = False
    content: Callable[[], Any] = field(default=lambda: None, repr=False)
    origin: HubPath | None = None
    library: str = ""
    converted: str = ""

    @property
    def sha256(self) -> str:
        """Of the bytes that were opened, as 64 hex digits.

        Raises:
            CheckpointError: if the file was written to since, or cannot be read.
        """
        return self.hashed()

    @property
    def in_file(self) -> Mapping[str, Tensor]:
        """The tensors by their keys in the file, with the prefix, which can also be the model's own."""
        return renamed(self.tensors, {self.prefix + key: key for key in self.tensors})


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
