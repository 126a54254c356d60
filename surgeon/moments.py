"""The mean of x x^T over recorded rows, in whichever form is cheaper to work with."""

from __future__ import annotations

import torch
from torch import Tensor


class SecondMoment:
    """C = mean of x x^T over rows x of dimension d.

    As long as there are fewer rows than dimensions the rows themselves are kept, since applying a map to them costs
    n d^2 where a product with C costs d^3; after that only the Gram matrix X^T X is.

    Args:
        dimension: d.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.count = 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Record rows of shape (n, d), detached; they are kept by reference."""
        self.count += len(rows)
        if self._gram is None and self.count < self.dimension:
            self._rows.append(rows)
            return
        for part in (*self._rows, rows):
            gram = part.T @ part
            self._gram = gram if self._gram is None else self._gram + gram
        self._rows = []

    def rows(self) -> Tensor | None:
        """Return the rows, shape (n, d), as long as there are fewer of them than dimensions."""
        return torch.cat(self._rows) if self._gram is None else None

    def matrix(self) -> Tensor:
        """Return C, shape (d, d)."""
        if self._gram is not None:
            return self._gram / self.count
        rows = torch.cat(self._rows)
        return rows.T @ rows / self.count
