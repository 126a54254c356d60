"""A few rows instead of many, by which it is quicker to look for something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.support.trees import map_tensors, tensors_in

FEW_ROWS = 61
"""So many of more than twice as many; a prime, so that no axis of features is likely to have the same length."""

SAME = 1e-10
"""Largest deviation of a result in float64 that is the same, relative to its largest entry."""


def few_positions(count: int) -> Tensor:
    """Return the positions of a few out of ``count`` rows, evenly spread, the first and the last among them."""
    return torch.linspace(0, count - 1, FEW_ROWS, dtype=torch.float64).round().long()


def same_rows(base: Tensor, moved: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Find some rows of a tensor among those of another one.

    Args:
        base: shape (rows, d).
        moved: shape (rows, d); it is looked for all of its rows, or for few of many.
        tolerance: largest deviation, relative to the largest row.

    Returns:
        Positions in ``moved``, and in ``base`` where the same row is, all different; None if one is not there.
    """
    count = len(moved)
    chosen = few_positions(count) if count > 2 * FEW_ROWS else torch.arange(count)
    distances, found = torch.cdist(moved[chosen], base).min(dim=1)
    same = bool((distances <= tolerance * base.norm(dim=1).max()).all())
    return (chosen, found) if same and len(set(found.tolist())) == len(found) else None


@dataclass(frozen=True)
class FewRows:
    """Makes of the arguments of a call those of a few rows; every tensor with ``count`` rows loses the others."""

    count: int = 0

    def of(self, tree: Any) -> Any:
        """Return the same nest with fewer rows, or the nest itself without a count."""
        if not self.count:
            return tree
        chosen = few_positions(self.count)
        return map_tensors(lambda tensor: tensor[chosen] if tensor.shape[:1] == (self.count,) else tensor, tree)


def few_rows(run: Callable[[Mapping[str, Any]], Any], arguments: Mapping[str, Any]) -> FewRows:
    """Find out whether a function treats the rows of its arguments one by one, so that a few of them show it.

    Args:
        run: from arguments by name to a nest of tensors, in float64.
        arguments: of one call; what counts as rows is the longest first axis of a tensor.

    Returns:
        What picks rows, all if there are not many or their results depend on each other.
    """
    longest = max((len(tensor) for tensor in tensors_in(arguments) if tensor.ndim), default=0)
    chosen = FewRows(longest)
    if longest <= 2 * FEW_ROWS:
        return FewRows()
    try:
        every, few = (tensors_in(run(given)) for given in (arguments, chosen.of(arguments)))
    except Exception:  # the function is foreign code, and may want all rows
        return FewRows()
    alike = bool(every) and all(_are_rows_of(a, b, longest) for a, b in zip(few, every, strict=True))
    return chosen if alike else FewRows()


def _are_rows_of(few: Tensor, every: Tensor, count: int) -> bool:
    if every.shape[:1] != (count,) or few.shape != (FEW_ROWS, *every.shape[1:]):
        return False
    expected = every[few_positions(count)]
    if not every.is_floating_point():
        return torch.equal(few, expected)
    return bool((few - expected).abs().max() <= SAME * every.abs().max()) if few.numel() else True
