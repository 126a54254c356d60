"""How far outputs may differ if two programs compute the same: in units of the model's own rounding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

TIMES_ROUNDING = 10.0
"""Another program may differ from the model by this many times the model's own rounding error, measured in float64."""

RELATIVE = 1e-5
"""... and always by this share of the largest entry of an output."""


def largest_entry(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor of any shape; 0 for an empty one."""
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0


def allowed_deviation(own: Tensor, exact: Tensor, relative: float = RELATIVE) -> float:
    """Return ``max(10 max|own - exact|, relative max|exact|)``.

    Args:
        own: an output of the model in its own dtype, any shape.
        exact: the same of its float64 twin.
        relative: the share of the largest entry.
    """
    return max(TIMES_ROUNDING * largest_entry(own.double() - exact.double()), relative * largest_entry(exact))


def largest_deviation(found: Sequence[Tensor], expected: Sequence[Tensor], allowed: Sequence[float]) -> float:
    """Return the largest deviation in units of the allowed one; infinity if the outputs do not even fit."""
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in expected]:
        return float("inf")
    ratios = [0.0]
    for a, b, bound in zip(found, expected, allowed, strict=True):
        deviation = largest_entry(a.double() - b.double())
        ratios.append(deviation / bound if bound else (0.0 if deviation == 0 else float("inf")))
    return float("inf") if any(ratio != ratio for ratio in ratios) else max(ratios)
