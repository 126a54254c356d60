"""When a result counts as equivariant as its original, and as the function of clean evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from surgeon.algebra.equivariance import ErrorSummary, relative_difference
from surgeon.proof.chance import LEVEL, Rows, can_exclude_chance, chance_of, rounded_anew

AS_EQUIVARIANT = 10.0
"""The stripped model's equivariance errors may exceed the original's by this factor (both are rounding noise)."""

FLOOR = {"float64": 1e-10}
"""Equivariance errors that are never held against a model, by dtype; 1e-5 in any other."""

SAME_FUNCTION = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest relative deviation from clean evaluation, by the dtype of what was rounded; a fold rounds weights."""

Equivariance = Mapping[str, Mapping[str, ErrorSummary]]
"""Of one model: dtype to component to summary."""


def less_equivariant(
    equivariance: Mapping[str, Equivariance], rows: Mapping[str, Mapping[str, Rows]] | None = None
) -> list[str]:
    """Say where the error of "stripped" is above the original's: dtype by dtype, component by component.

    In float64 the maxima over all elements and batches are compared. In any other dtype ties of discrete choices fall
    by chance: distributions of rows are compared, and only what chance cannot explain counts. If there are too few rows
    for that, float64 alone decides, and where there is none, the maxima.

    Args:
        equivariance: of "original" and "stripped".
        rows: of the same two, component to rows in the models' own dtype.
    """
    found = []
    for dtype, components in equivariance["original"].items():
        floor = FLOOR.get(dtype, 1e-5)
        for component, before in components.items():
            after = equivariance["stripped"][dtype][component]
            own = (rows or {}).get("original", {}).get(component) if dtype != "float64" else None
            if rows and own is not None and can_exclude_chance(own):
                chance = chance_of(own, rows["stripped"][component], AS_EQUIVARIANT, floor)
                worse, how = chance < LEVEL, f", which chance explains with a probability of {chance:.0e} only"
            elif dtype != "float64" and "float64" in equivariance["original"]:
                continue
            else:
                worse, how = not after.maximum <= max(AS_EQUIVARIANT * before.maximum, floor), ""
            if worse:
                found.append(
                    f"equivariance error under {component} in {dtype}: expected about {before.maximum:.1e} at most as "
                    f"in the original, got {after.maximum:.1e}{_by(after)}{how}"
                )
    return found


def _by(error: ErrorSummary) -> str:
    return f" (by {error.worst})" if error.worst else ""


def flipped_rows(rows: Mapping[str, Mapping[str, Rows]]) -> dict[str, Any]:
    """Return how many rows of the outputs were flipped, JSON-compatible: component to model to ``[flipped, of]``."""
    return {
        component: {model: list(rows[model][component].flipped()) for model in rows} for component in rows["original"]
    }


def other_function(
    run: Callable[[Any], Any],
    batches: Sequence[Any],
    expected: Sequence[Any],
    rounded: torch.dtype | None,
    repeats: int = 4,
) -> str:
    """Say by how much a model differs from clean evaluation; empty if it does not.

    A result that was rounded flips ties. Where it deviates by more than the tolerance, its rows are compared with those
    of the same model after another rounding of its inputs, and only what chance cannot explain counts.

    Args:
        run: the stripped model, from a batch to outputs.
        batches: sample batches.
        expected: outputs of clean evaluation on them.
        rounded: the dtype in which something was rounded; None if the two must agree to float64's own rounding.
        repeats: how many other roundings.

    Returns:
        A sentence, or nothing.
    """
    outputs = [run(batch) for batch in batches]
    change = max(relative_difference(a, b) for a, b in zip(outputs, expected, strict=True))
    tolerance = SAME_FUNCTION.get(rounded or torch.float64, 1e-2)
    if change <= tolerance:
        return ""
    sentence = f"the stripped model differs from clean evaluation by {change:.1e} (relative)"
    if rounded is None or rounded == torch.float64:
        return sentence
    generator, found, usual = torch.Generator().manual_seed(0), Rows(), Rows()
    for number, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        found.add(number, output, expected[number])
        for _ in range(repeats):
            usual.add(number, run(rounded_anew(batch, rounded, generator)), output)
    if not can_exclude_chance(found):
        return f"{sentence}; there are too few rows to tell whether rounding explains it"
    chance = chance_of(usual, found, AS_EQUIVARIANT, tolerance)
    return "" if chance >= LEVEL else f"{sentence}, which rounding explains with a probability of {chance:.0e} only"
