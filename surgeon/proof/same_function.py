"""Whether a stripped model computes the function of clean evaluation.

A fold rounds the weights that it writes, and rounding flips ties. Where the network runs in float64 the two are judged
apart: a twin that is folded without rounding computes the same function, and the weights are its own, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.proof.equivariance import AS_EQUIVARIANT
from surgeon.proof.rounding import LEVEL, RowErrors, can_exclude_chance, chance_of, rounded_anew
from surgeon.support.trees import in_dtype

SAME_FUNCTION = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest relative deviation from clean evaluation, by the dtype of what was rounded; a fold rounds weights."""

ROUNDED, SOLVED = 8.0, 1e-10
"""How far a folded weight may be off, relative to the largest of its tensor: in units of its dtype's rounding, and at
least by what solving for it leaves in float64."""


def other_weights(model: nn.Module, exact: nn.Module) -> str:
    """Say which weight of a model is not the rounding of the same one of its float64 twin; empty if there is none.

    Args:
        exact: the twin, stripped in the same way.
    """
    for name, parameter in model.named_parameters():
        expected, found = exact.get_parameter(name).detach(), in_dtype(parameter.detach(), torch.float64)
        if not parameter.numel():
            continue
        change, scale = float((found - expected).abs().max()), float(expected.abs().max())
        if not change <= max(ROUNDED * torch.finfo(parameter.dtype).eps, SOLVED) * scale:
            return f"{name} is {change:.1e} off the fold in float64, whose largest number there is {scale:.1e}"
    return ""


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
    generator, found, usual = torch.Generator().manual_seed(0), RowErrors(), RowErrors()
    for number, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        found.add(number, output, expected[number])
        for _ in range(repeats):
            usual.add(number, run(rounded_anew(batch, rounded, generator)), output)
    if not can_exclude_chance(found):
        return f"{sentence}; there are too few rows to tell whether rounding explains it"
    chance = chance_of(usual, found, AS_EQUIVARIANT, tolerance)
    return "" if chance >= LEVEL else f"{sentence}, which rounding explains with a probability of {chance:.0e} only"
