"""Adapter for NequIP potentials: from its checkpoints and packages to plain data and back, and a task on extended XYZ.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.files.checkpoint import Checkpoint
from surgeon.plan import Task
from surgeon.registry import Adapter
from surgeon.support.imports import call_with
from surgeon_adapters.nequip import files as nequip_files
from surgeon_adapters.nequip.task import NequipTask


class NequipAdapter(Adapter):
    """NequIP from its file to its file."""

    name = "nequip"
    groups = ("SO3", "O3", "SE3", "E3")

    def open_file(self, path: Path, trust_pickle: bool) -> Checkpoint | None:
        """Open a checkpoint of nequip's training, or a package; None for other files."""
        return nequip_files.open_file(path, trust_pickle)

    def write_file(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write it again with other weights."""
        nequip_files.write_file(checkpoint, tensors, path)

    def reopen(self, path: Path) -> nn.Module | None:
        """Open a checkpoint or a package as nequip's own commands do; None for other files."""
        return nequip_files.open_by_nequip(path)

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on an extended-XYZ file."""
        task: Task = call_with(functools.partial(NequipTask, data), arguments, "the task of nequip", TaskError)
        return task


adapter = NequipAdapter()
