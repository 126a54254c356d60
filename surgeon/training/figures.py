"""What a run records for the figures of its report alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.files.ordinary import bytes_of
from surgeon.files.relaxed import RECORDS
from surgeon.recording.flow import Flow
from surgeon.support.plain import parse_json, read_plain

FIGURES_FILE = RECORDS[-1]

ORIGINAL, CLEAN = "original", "clean"
"""The model as it came, and at the best epoch without branches."""

PairsByModel = Mapping[str, Mapping[str, Mapping[str, list[float]]]]
"""Model to what :class:`surgeon.opening.pairs.Pairs` finds."""


@dataclass(frozen=True)
class Figures:
    """What ``figures.json`` holds.

    Attributes:
        pairs: of the validation split, by ``ORIGINAL`` and ``CLEAN``; in a distributed training those of the first
            process.
        flow: of the data through the network, once the training has ended; None before, without branches, and where no
            run could be recorded.
    """

    pairs: PairsByModel = field(default_factory=dict)
    flow: Flow | None = None


def read_figures(folder: Path) -> Figures:
    """Return what a run folder has recorded; folders of earlier versions have nothing.

    Raises:
        CheckpointError: if it cannot be read.
    """
    path = folder / FIGURES_FILE
    try:
        if not path.is_file():
            return Figures()
        return read_plain(parse_json(bytes_of(path)), Figures, "what a run has recorded for figures", ValueError)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {str(path)!r} ({error}): start anew with `--force`") from error
