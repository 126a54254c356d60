"""What chance explains: rows of outputs that rounding flips, and whether one model's are worse than another's.

A network with discrete choices (nearest neighbours, a maximum, a cut-off) decides ties by rounding. A row of its output
in which a tie went the other way is far off, and which rows these are is chance. So distributions of rows are compared,
never single maxima.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgeon.support.trees import as_numbers, as_pairs, map_tensors, tensors_in

LEVEL = 1e-3
"""What is less probable than this is not called chance."""

FLIPPED = 100.0
"""A row is called flipped if its error is this many times the median row's."""


@dataclass
class RowErrors:
    """Relative error of every row of every output of a few batches: the largest over all elements it was measured with.

    Attributes:
        samples: how many rows there are at least that do not depend on each other: those of the shortest output.
    """

    samples: int = 0
    _errors: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add(self, batch: int, moved: Any, expected: Any) -> None:
        """Take one more measurement on a batch, of the same outputs at every call.

        Args:
            moved: outputs; the first axis of every floating tensor counts its rows.
            expected: what they should be, of the same shapes.
        """
        pairs = list(zip(*(map(as_pairs, tensors_in(each)) for each in (moved, expected)), strict=True))
        pairs = [(one, other) for one, other in pairs if other.is_floating_point() and other.numel()]
        if pairs and (batch, 0) not in self._errors:
            self.samples += min(_as_rows(tensor).shape[0] for _, tensor in pairs)
        for place, (left, right) in enumerate(pairs):
            errors = row_errors(left, right)
            known = self._errors.get((batch, place))
            self._errors[batch, place] = errors if known is None else torch.maximum(known, errors)

    def by_output(self) -> list[Tensor]:
        """Return the errors of all batches' rows, one float64 tensor per output."""
        found: dict[int, list[Tensor]] = defaultdict(list)
        for (_, place), errors in self._errors.items():
            found[place].append(errors)
        return [torch.cat(errors) for errors in found.values()]

    def flipped(self) -> tuple[int, int]:
        """Return how many rows are flipped, and how many there are, in the output where most are."""
        counts = [(int((errors > FLIPPED * errors.median()).sum()), len(errors)) for errors in self.by_output()]
        return max(counts, default=(0, 0))


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.detach().double().reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def row_errors(left: Tensor, right: Tensor) -> Tensor:
    """Return ``|left_i - right_i|`` of every row, in units of the root mean square row of ``right``; infinite for NaN.

    Args:
        left: shape (rows, ...), or a number.
        right: the reference, of the same shape.

    Returns:
        Shape (rows,), float64.
    """
    first, second = _as_rows(left), _as_rows(right)
    floor = 100 * torch.finfo(right.dtype).eps * math.sqrt(second.shape[1])
    scale = max(float(second.norm(dim=1).square().mean().sqrt()), floor)
    errors: Tensor = (first - second).norm(dim=1) / scale
    return errors.nan_to_num(nan=math.inf)


def chance_of(before: RowErrors, after: RowErrors, factor: float, floor: float) -> float:
    """Return the probability that rows like those of ``before`` look as bad as those of ``after``.

    The hypothesis is that the errors of ``after`` are distributed as ``factor`` times those of ``before``, or smaller
    ones. The statistic is the largest distance by which the one distribution lies above the other, over all quantiles;
    for two samples of equal size n its distribution is known: P(n D >= h) = C(2n, n - h) / C(2n, n) (Smirnov). Rows of
    one sample are no independent draws, so n is the number of samples; outputs are tested one by one.

    Args:
        before: of the reference.
        after: of what is judged, of equally many rows.
        factor: how much larger errors may be.
        floor: errors up to this count as equal.
    """
    n = min(before.samples, after.samples)
    pairs = list(zip(before.by_output(), after.by_output(), strict=True))
    found = [_smirnov(n, _distance((factor * a).clamp(min=floor), b.clamp(min=floor))) for a, b in pairs]
    return min(1.0, len(found) * min(found, default=1.0))


def can_exclude_chance(rows: RowErrors) -> bool:
    """Tell whether there are enough rows for :func:`chance_of` to fall below ``LEVEL`` at all."""
    return len(rows.by_output()) * _smirnov(rows.samples, 1.0) < LEVEL


def _distance(left: Tensor, right: Tensor) -> float:
    """Return the largest share by which ``right`` exceeds thresholds more often than ``left`` does."""
    thresholds = torch.cat([left, right])
    below = [torch.searchsorted(values.sort().values, thresholds, right=True) for values in (left, right)]
    return float((below[0] / len(left) - below[1] / len(right)).max())


def _smirnov(n: int, distance: float) -> float:
    h = math.floor(n * distance + 1e-9)
    return math.comb(2 * n, n - h) / math.comb(2 * n, n)


def rounded_anew(batch: Any, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Return a batch whose floating entries are changed by about one rounding of ``dtype``, at random."""

    def changed(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return as_numbers(changed(as_pairs(tensor)))
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
        return (tensor.detach().double() * (1 + torch.finfo(dtype).eps * noise)).to(tensor.dtype)

    return map_tensors(changed, batch)
