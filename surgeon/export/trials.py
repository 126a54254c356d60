"""Axes that have one size in all batches of a task, tried at others: batches are cut, or their rows repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 4
"""Axes shorter than this hold coordinates, or so few parts that there is nothing to cut."""


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        axes: per tensor, those that have one size in all batches, and at another size of which the model runs.
        batches: on which it ran, as lists of tensors.
    """

    axes: tuple[tuple[int, ...], ...]
    batches: tuple[list[Tensor], ...]


def try_other_sizes(
    tensors: Sequence[Tensor], dynamic: Sequence[Sequence[int]], runs: Callable[[list[Tensor]], bool]
) -> Trial:
    """Find the axes without a fixed size among those that no batch shows to have none.

    All axes of one size are taken for one: that of the points, say, or of the edges.

    Args:
        tensors: of the example batch.
        dynamic: per tensor, the axes that are known to have no fixed size.
        runs: whether the model can be run on a batch.
    """
    axes, batches = [set[int]() for _ in tensors], list[list[Tensor]]()
    sizes = {
        tensor.shape[axis]
        for tensor, known in zip(tensors, dynamic, strict=True)
        for axis in range(tensor.dim())
        if axis not in known and tensor.shape[axis] >= SMALLEST
    }
    for size in sorted(sizes):
        for length in (size // 2, size - 1, 2 * size):
            batch = resized(tensors, size, torch.arange(length) % size)
            if not runs(batch):
                continue
            batches.append(batch)
            for found, known, before, after in zip(axes, dynamic, tensors, batch, strict=True):
                sizes_of = enumerate(zip(before.shape, after.shape, strict=True))
                found |= {axis for axis, (old, new) in sizes_of if old != new and axis not in known}
    return Trial(tuple(tuple(sorted(found)) for found in axes), tuple(batches))


def resized(tensors: Sequence[Tensor], size: int, rows: Tensor) -> list[Tensor]:
    """Keep some rows along every axis of one size, and with them what points at the others.

    Integers up to ``size - 1`` with another axis point at rows: edges at nodes, nodes at graphs. So do those that count
    up from 0 with one entry more, as graphs say where their nodes begin.

    Args:
        tensors: of one batch.
        rows: shape (kept,), in ascending order, or from the beginning again.
    """
    found = [_chosen(tensor, size, rows) for tensor in tensors]
    if len(rows) >= size:
        return found
    found = [tensor[: len(rows) + 1] if _begins(tensor, size) else tensor for tensor in found]
    for before in tensors:
        if size in before.shape or before.is_floating_point() or not before.numel() or int(before.max()) != size - 1:
            continue
        whole = (before < len(rows)).reshape(-1, before.shape[-1]).all(0).nonzero().flatten()
        if len(whole) < before.shape[-1]:
            found = resized(found, before.shape[-1], whole)
    return found


def _chosen(tensor: Tensor, size: int, rows: Tensor) -> Tensor:
    for axis in [axis for axis in range(tensor.dim()) if tensor.shape[axis] == size]:
        tensor = tensor.index_select(axis, rows)
    return tensor


def _begins(tensor: Tensor, size: int) -> bool:
    """Tell whether integers say where each of some parts begins, and where the last one ends."""
    counts = tensor.dim() == 1 and len(tensor) == size + 1 and not tensor.is_floating_point()
    return counts and int(tensor[0]) == 0 and bool((tensor.diff() >= 0).all())
