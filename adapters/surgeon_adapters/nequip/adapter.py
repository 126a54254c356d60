"""Adapter for NequIP potentials: from its checkpoints and packages to plain data and back, and a task on extended XYZ.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from surgeon.files.checkpoint import Checkpoint
from surgeon_adapters.atoms.adapter import PotentialAdapter
from surgeon_adapters.nequip import files as nequip_files
from surgeon_adapters.nequip.task import NequipTask


class NequipAdapter(PotentialAdapter):
    """NequIP from its file to its file."""

    name = "nequip"
    task_class = NequipTask

    def open_file(self, path: Path, trust_pickle: bool) -> Checkpoint | None:
        """Open a checkpoint of nequip's training, or a package; None for other files."""
        return nequip_files.open_file(path, trust_pickle)

    def write_file(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write it again with other weights."""
        nequip_files.write_file(checkpoint, tensors, path)

    def reopen(self, path: Path) -> nn.Module | None:
        """Open a checkpoint or a package as nequip's own commands do; None for other files."""
        return nequip_files.open_by_nequip(path)


adapter = NequipAdapter()
