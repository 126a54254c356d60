"""Programs of torch.export as the files that they make."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from surgeon.export.archive import Archive, read_archive
from surgeon.export.pt2_file import save_program


def in_file(program: Any) -> Archive:
    """Return what a program would be in a file."""
    with tempfile.TemporaryDirectory() as folder:
        save_program(program, Path(folder) / "model.pt2")
        return read_archive(Path(folder) / "model.pt2")
