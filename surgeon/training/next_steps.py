"""What can be done next with what lies in a folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from surgeon.files.clean import CERTIFICATE_FILE
from surgeon.files.relaxed import is_relaxed_folder
from surgeon.opening.next_command import as_argument
from surgeon.training.runs import RECORDS_FILE

CHECKPOINTS = (".safetensors", ".pt", ".pth", ".ckpt", ".model", ".tar")
AT_MOST = 8
"""Entries of which a step is said."""


def next_steps() -> list[str]:
    """Say of the checkpoints and of our folders in the current folder what to do next with each, the newest first.

    No file is opened: kinds are told apart by names.
    """
    found = []
    for entry in sorted(Path().iterdir(), key=lambda entry: entry.lstat().st_mtime, reverse=True):
        step = _step(entry)
        if step is not None and entry.name.isprintable() and not entry.name.startswith("."):
            found.append(step)
    more = [f"and {len(found) - AT_MOST} more"] if len(found) > AT_MOST else []
    return [*found[:AT_MOST], *more]


def _step(entry: Path) -> str | None:
    name = shlex.quote(as_argument(Path(entry.name)))
    if is_relaxed_folder(entry):
        if (entry / RECORDS_FILE).is_file():
            return f"{name} was trained: surgeon strip {name}"
        return f"{name} was relaxed: surgeon finetune {name}"
    if (entry / CERTIFICATE_FILE).is_file():
        return f"{name} is clean: surgeon verify {name}"
    if entry.is_file() and entry.suffix in CHECKPOINTS:
        task = " --task task.py" if (entry.parent / "task.py").is_file() else ""
        return f"{name} may be a checkpoint: surgeon inspect {name}{task}"
    return None
