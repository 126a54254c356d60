"""What a comparison shows, in words, and the record of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.training.outcomes import ArmRun


def budget(runs: Sequence[ArmRun]) -> str:
    """Say how many runs there were and with what budget."""
    arms, seeds = len({run.arm for run in runs}), len({run.seed for run in runs})
    steps = sorted({run.steps for run in runs})
    each = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} (by seed)"
    return f"{len(runs)} runs: {arms} arms, {seeds} seeds, {each} optimiser steps each"


def sentences(rows: list[dict[str, Any]], metric: str) -> list[str]:
    """Say in words what a comparison shows, and no more than it shows."""
    said = []
    plain = next((row for row in rows if row["arm"] == "plain"), None)
    for row in rows:
        if plain is None or row is plain or row["difference"] != row["difference"]:
            continue
        share = 100 * row["difference"] / abs(plain["mean"])
        if row["half_width"] != row["half_width"]:
            verdict = "one seed says nothing about chance"
        elif row["half_width"] == 0:
            verdict = "all seeds gave the same result, so nothing is known about chance"
        elif abs(row["difference"]) <= row["half_width"]:
            verdict = "not distinguishable from plain fine-tuning with these seeds"
        else:
            verdict = "distinguishable from plain fine-tuning (95 % interval excludes 0)"
        said.append(f"{row['arm']}: {metric} {share:+.1f} % against plain: {verdict}")
    return said


def read_sweep(path: Path) -> Mapping[str, Any]:
    """Read the record of a sweep.

    Raises:
        CheckpointError: if it is missing or has no best learning rates.
    """
    try:
        data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        data = data.get("sweep") or data
        return {**data, "best": {str(arm): float(rate) for arm, rate in data["best"].items()}}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"expected the record of a sweep in {str(path)!r}, could not read one ({error}): give the file that "
            "--lr-grid wrote"
        ) from error
