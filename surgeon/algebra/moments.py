"""The mean of x x^T over recorded rows, in whichever form is cheaper to work with."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class SecondMoment:
    """C = mean of x x^T over rows x of dimension d.

    As long as there are fewer rows than dimensions the rows themselves are kept, since applying a map to them costs
    n d^2 where a product with C costs d^3; after that only the Gram matrix X^T X is.

    Args:
        keep_rows: always keep the rows, for the mean of norms.
    """

    def __init__(self, dimension: int, keep_rows: bool = False) -> None:
        self.dimension = dimension
        self.count = 0
        self._keep_rows = keep_rows
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Record rows of shape (n, d), detached; they are kept by reference."""
        self.count += len(rows)
        if self._keep_rows or (self._gram is None and self.count < self.dimension):
            self._rows.append(rows)
            return
        for part in (*self._rows, rows):
            self._sum_up(gram_matrix(part))
        self._rows = []

    def add_gram(self, gram: Tensor, count: int) -> None:
        """Record ``count`` rows by their sum of x x^T, shape (d, d)."""
        self.count += count
        for part in self._rows:
            self._sum_up(gram_matrix(part))
        self._rows = []
        self._sum_up(gram)

    def _sum_up(self, gram: Tensor) -> None:
        self._gram = gram if self._gram is None else self._gram + gram

    def rows(self) -> Tensor | None:
        """Return the rows, shape (n, d), in float32 at least; None if only their Gram matrix was kept."""
        return in_single(torch.cat(self._rows)) if self._gram is None else None

    def matrix(self) -> Tensor:
        """Return C, shape (d, d)."""
        return self.gram() / self.count

    def gram(self) -> Tensor:
        """Return the sum of x x^T over the rows, shape (d, d)."""
        if self._gram is not None:
            return self._gram
        return gram_matrix(torch.cat(self._rows))

    def replace(self, gram: Tensor, count: int) -> None:
        """Take the sum of x x^T over ``count`` rows instead of what was recorded."""
        self._rows, self._gram, self.count = [], gram, count


def in_single(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 if its dtype is shorter: sums of squares leave the range of float16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


BLOCK = 128
"""Columns of a Gram matrix that are multiplied out together."""


def gram_matrix(rows: Tensor) -> Tensor:
    """Return X^T X of rows X, shape (d, d), in float32 at least, by the blocks of its upper triangle alone."""
    if torch.is_autocast_enabled(rows.device.type):  # a forward in mixed precision records, too
        with torch.autocast(rows.device.type, enabled=False):
            return gram_matrix(rows)
    rows, size = in_single(rows), rows.shape[1]
    parts = -(-size // BLOCK)
    gram = rows.new_empty(size, size)
    for part in range(parts):
        start, end = size * part // parts, size * (part + 1) // parts
        torch.mm(rows[:, start:end].T, rows[:, start:], out=gram[start:end, start:])
        gram[end:, start:end] = gram[start:end, end:].T
    return gram


def processes() -> int:
    """Return how many processes train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def average_over_processes(moments: Sequence[SecondMoment]) -> None:
    """Replace the moments of every process, in place, by those of the rows of all processes, weighted by rows.

    All processes have to call it with moments of the same dimensions in the same order, those of which a process has no
    row with an empty one; one message is sent.
    """
    if not moments:
        return
    counts = torch.tensor([moment.count for moment in moments], dtype=torch.float64)
    grams = [moment.gram() for moment in moments]
    # in float16 or bfloat16 not even the counts would be whole numbers
    dtype = functools.reduce(torch.promote_types, (gram.dtype for gram in grams), torch.float32)
    message = torch.cat([counts.to(grams[0].device, dtype), *(gram.flatten().to(dtype) for gram in grams)])
    distributed.all_reduce(message)
    totals = message[: len(counts)].tolist()
    parts = torch.split_with_sizes(message[len(counts) :], [gram.numel() for gram in grams])
    for moment, gram, part, total in zip(moments, grams, parts, totals, strict=True):
        moment.replace(part.view_as(gram).to(gram), round(total))


def rows_per_process(counts: Sequence[int]) -> list[float]:
    """Return the mean of each count over all processes."""
    return mean_over_processes(torch.tensor(counts, dtype=torch.float64)).tolist()


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    device = "cuda" if distributed.get_backend() == "nccl" else values.device
    total = values.detach().clone().to(device)
    distributed.all_reduce(total)
    return (total / distributed.get_world_size()).to(values)


def mean_of_each(values: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of each tensor over all processes, which send one message; detached in a single process."""
    if processes() == 1 or not values:
        return [value.detach() for value in values]
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in values))
    together = torch.cat([value.detach().flatten().to(values[0].device, dtype) for value in values])
    parts = torch.split_with_sizes(mean_over_processes(together), [value.numel() for value in values])
    return [part.view(value.shape).to(value) for part, value in zip(parts, values, strict=True)]


def weighted_mean_of_each(values: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor | None]:
    """Return the mean of each tensor over all processes, each of which counts by its own weight; None if all are 0."""
    if not values:
        return []
    own = [weight * value.detach().double() for value, weight in zip(values, weights, strict=True)]
    totals, *sums = mean_of_each([torch.tensor(weights, dtype=torch.float64), *own])
    means = zip(values, totals.tolist(), sums, strict=True)
    return [(part / total).to(value) if total else None for value, total, part in means]
