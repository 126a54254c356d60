"""When a figure that was measured again counts as the recorded one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

SIGNAL = 1e-2
"""Largest relative change of an error above rounding: it follows from weights and data, whatever the machine."""

NOISE = 3.0
"""Largest factor between two errors at rounding level: sums are added up in another order elsewhere."""

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative errors up to this size can be rounding alone; they are the tolerances of ``assert_equivariant``."""

HALF = 1e-2
"""The same for half precision."""

RESOLUTION = 0.1
"""Relative errors below this share of the dtype's spacing are all the same; a few are exactly 0 on some machines."""

ALLOWED_SHARE = 1e-2
"""Deviations below this share of the allowed one are all the same: float32 resolves no smaller ones."""


def same_error(left: float, right: float, dtype: str) -> bool:
    """Tell whether two relative equivariance errors are one, measured twice on the same elements and batches.

    Args:
        left: dimensionless; not finite for a model that fails.
        right: the same.
        dtype: of the model, such as "float32".
    """
    kind = getattr(torch, dtype, None)
    if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        return _same(left, right, 0.0, 0.0)
    return _same(left, right, RESOLUTION * torch.finfo(kind).eps, ROUNDING.get(kind, HALF))


def same_deviation(left: float, right: float) -> bool:
    """Tell whether two deviations in units of the allowed one are one, measured twice; below 1 they are rounding."""
    return _same(left, right, ALLOWED_SHARE, 1.0)


def _same(left: float, right: float, smallest: float, rounding: float) -> bool:
    if not (math.isfinite(left) and math.isfinite(right)):
        return math.isfinite(left) == math.isfinite(right)
    low, high = sorted((max(left, smallest), max(right, smallest)))
    return high - low <= SIGNAL * high or (high <= rounding and high <= NOISE * low)


def differing_figures(what: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Say in which entries two JSON records of one export differ; deviations by :func:`same_deviation`."""
    for key in dict.fromkeys([*recorded, *found]):
        before, after = recorded.get(key), found.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differing_figures(f"{what}, {key}", before, after)
        elif not _same_value(before, after):
            yield f"{what}: recorded {key} is {_short(before)}, found {_short(after)}"


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return same_deviation(left, right)
    return bool(left == right)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:120] + "..."
