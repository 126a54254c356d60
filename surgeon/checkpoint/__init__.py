"""Checkpoint files: open any container, load strictly, write it back, and the relaxed folder."""

from __future__ import annotations

from surgeon.checkpoint.container import write_container
from surgeon.checkpoint.library import KeepsFiles
from surgeon.checkpoint.loading import load_branches, load_into
from surgeon.checkpoint.reading import Checkpoint, keys_hash, open_checkpoint
from surgeon.checkpoint.relaxed import (
    BASE_FILE,
    BRANCH_FILE,
    CONFIG_FILE,
    STATE_FOLDER,
    RelaxedConfig,
    RelaxedFiles,
    find_only_folder,
    is_relaxed_folder,
    read_relaxed,
    split_state,
    write_relaxed,
)

__all__ = [
    "BASE_FILE",
    "BRANCH_FILE",
    "CONFIG_FILE",
    "STATE_FOLDER",
    "Checkpoint",
    "KeepsFiles",
    "RelaxedConfig",
    "RelaxedFiles",
    "find_only_folder",
    "is_relaxed_folder",
    "keys_hash",
    "load_branches",
    "load_into",
    "open_checkpoint",
    "read_relaxed",
    "split_state",
    "write_container",
    "write_relaxed",
]
