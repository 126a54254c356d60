"""How much is measured for a certificate, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

RECALIBRATION_BATCHES = 50
"""Training batches, at most, on which the statistics of normalisation layers are measured anew."""


@dataclass(frozen=True)
class MeasureSettings:
    """How much to measure: elements per component of the group and batch, batches, seed."""

    elements: int = 4
    batches: int = 2
    seed: int = 0
