"""What adapters share that recognise a state dict by its keys and shapes, or a file by what is in it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from surgeon.errors import CheckpointError

LISTED = 3
"""So many names are listed in a message."""


def require_same_form(words: str, expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Compare keys and shapes with those of a network that was recognised.

    Args:
        words: what it is, for the message.
        expected: its keys and shapes.

    Raises:
        CheckpointError: if they differ: what was recognised, and what differs.
    """
    differences = {
        "it lacks": [key for key in expected if key not in tensors],
        "it has more": [key for key in tensors if key not in expected],
        "of another shape": [key for key in expected if key in tensors and expected[key] != tensors[key].shape],
    }
    found = [f"{what} {_listed(keys)}" for what, keys in differences.items() if keys]
    if found:
        raise CheckpointError(
            f"the weights look like those of a {words}, but {'; '.join(found)}: "
            "give `--model module:function` that builds this variant"
        )


def _listed(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:LISTED])}{f' and {len(keys) - LISTED} more' if len(keys) > LISTED else ''}"


def record_in(path: Path, name: str) -> bytes | None:
    """Return a record of an archive, as torch writes them, by its name below the archive's own; None if it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = next((other for other in archive.namelist() if other.partition("/")[2] == name), None)
            return None if found is None else archive.read(found)
    except (OSError, zipfile.BadZipFile):  # no archive, or one that is written without checksums
        return None
