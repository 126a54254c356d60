"""Adapter for SevenNet potentials: from a checkpoint of sevenn to plain data and back, and a task on extended XYZ.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from surgeon.files.checkpoint import Checkpoint
from surgeon_adapters.atoms.adapter import PotentialAdapter
from surgeon_adapters.sevennet import files as sevennet_files
from surgeon_adapters.sevennet.task import SevenNetTask


class SevenNetAdapter(PotentialAdapter):
    """SevenNet from its file to its file."""

    name = "sevennet"
    task_class = SevenNetTask
    package = "sevenn"
    calculator = (
        "from sevenn.calculator import SevenNetCalculator",
        'SevenNetCalculator("{file}", device="cpu")',
    )

    def open_file(self, path: Path, trust_pickle: bool) -> Checkpoint | None:
        """Open a checkpoint of sevenn's training; None for other files."""
        return sevennet_files.open_file(path, trust_pickle)

    def write_file(self, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write it again with other weights."""
        sevennet_files.write_file(checkpoint, tensors, path)

    def reopen(self, path: Path) -> nn.Module | None:
        """Open a checkpoint as sevenn's own calculator does; None for other files."""
        return sevennet_files.open_by_sevenn(path)


adapter = SevenNetAdapter()
