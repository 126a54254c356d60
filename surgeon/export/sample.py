"""The batch that a model is exported with, the names of its tensors, and which of their axes have no fixed size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import SurgeonError, TaskError
from surgeon.tasks import task_batches
from surgeon.trees import map_tensors, tensor_leaves, tensors_in, to_dtype
from surgeon.types import Path, Split, Task

EXAMPLE_SIZE = 7
"""Length of a sliced batch: torch.export takes sizes 0 and 1 for fixed, and a small one is traced quickly."""

OTHER_SIZES = (3, 5, 11)
"""Lengths of the batches with which an exported file is compared with the model."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Sample:
    """What an export needs to know of a task's batches.

    Attributes:
        batch: the example, on the CPU.
        others: batches of other sizes, for comparison.
        names: one name per tensor of the batch, in the order of ``tensors_in``.
        dynamic: per tensor, the axes without a fixed size.
    """

    batch: Any
    others: tuple[Any, ...]
    names: tuple[str, ...]
    dynamic: tuple[tuple[int, ...], ...]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """Return the example batch with other tensors, in the order of ``tensors_in``."""
        remaining = iter(tensors)
        return map_tensors(lambda _: next(remaining), self.batch)


def sample_of(task: Task, dtype: torch.dtype, per_split: int = 3) -> Sample:
    """Choose an example batch and find out which axes change from batch to batch.

    An axis is dynamic if its size differs between batches of the task. Batches whose tensors share their first axis,
    and of which a slice can be taken, are sliced; others are taken as they are.

    Args:
        task: its batches may have several sizes; the last one of a split often is smaller.
        dtype: of floating tensors.
        per_split: batches that are looked at from each split, besides the last one.

    Raises:
        TaskError: if all batches have the same sizes and cannot be sliced, or the example is too small.
    """
    batches = [to_dtype(batch, dtype) for batch in _collect(task, per_split)]
    leaves = [tensor_leaves(batch) for batch in batches]
    paths = list(leaves[0])
    if len(paths) != len(tensors_in(batches[0])):
        raise TaskError("expected every tensor of a batch once, but one appears twice in it: give copies")
    same_form = [entry for entry in leaves if list(entry) == paths]
    if _sliceable(leaves[0]):
        length = len(next(iter(leaves[0].values())))
        sizes = [size for size in OTHER_SIZES if size <= length]
        example = _sliced(batches[0], min(EXAMPLE_SIZE, length))
        others = tuple(_sliced(batches[0], size) for size in sizes)
        dynamic: tuple[tuple[int, ...], ...] = tuple((0,) for _ in paths)
    else:
        dynamic = tuple(_changing([entry[path] for entry in same_form]) for path in paths)
        order = sorted(range(len(batches)), key=lambda index: _too_small_and_size(batches[index], dynamic))
        example = batches[order[0]]
        others = tuple(batches[index] for index in order[1:] if _shapes(batches[index]) != _shapes(example))
    if not any(dynamic) or not others:
        raise TaskError(
            "expected batches of different sizes, so that the axes without a fixed size are known, but all batches of "
            "the task have the same: yield a smaller last batch"
        )
    small = _shortest(example, dynamic)
    if small < 2:
        raise TaskError(f"expected an example batch of length 2 at least, got {small}: let the task yield larger ones")
    return Sample(example, others, tuple(_name(path, task) for path in paths), dynamic)


def _collect(task: Task, per_split: int) -> list[Any]:
    found = []
    for split in SPLITS:
        try:
            batches = task_batches(task, split, 0)
            first = list(itertools.islice(batches, per_split))
        except SurgeonError:  # a task need not have all splits
            continue
        found += first
        last = None
        for last in batches:  # noqa: B007 - the last one is wanted
            pass
        found += [] if last is None else [last]
    if not found:
        raise TaskError("expected at least one batch to export the model with, got none: check batches() of the task")
    return found


def _sliceable(leaves: Mapping[Path, Tensor]) -> bool:
    """Tell whether all tensors share the length of their first axis, and no other structure hangs on it."""
    lengths = {tensor.shape[0] if tensor.dim() else -1 for tensor in leaves.values()}
    indices = any(not tensor.is_floating_point() and tensor.dim() > 1 for tensor in leaves.values())
    return len(lengths) == 1 and min(lengths) > 1 and not indices and any(t.dim() > 2 for t in leaves.values())


def _sliced(batch: Any, length: int) -> Any:
    return map_tensors(lambda tensor: tensor[:length].clone(), batch)


def _shortest(batch: Any, dynamic: Sequence[Sequence[int]]) -> int:
    """Return the smallest size of a dynamic axis."""
    return min(tensor.shape[axis] for tensor, axes in zip(tensors_in(batch), dynamic, strict=True) for axis in axes)


def _too_small_and_size(batch: Any, dynamic: Sequence[Sequence[int]]) -> tuple[bool, int]:
    """Sort key of examples: those with an axis of length 1, which would be fixed, last; then the fewest entries."""
    return any(dynamic) and _shortest(batch, dynamic) < 2, sum(tensor.numel() for tensor in tensors_in(batch))


def _shapes(batch: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors_in(batch)]


def _changing(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(axis for axis in range(tensors[0].dim()) if len({tensor.shape[axis] for tensor in tensors}) > 1)


def _name(path: Path, task: Task) -> str:
    """Return the name of a tensor: its keys; for the items of a bare tuple the task's ``input_names``."""
    given = getattr(task, "input_names", ())
    if len(path) <= 1 and (not path or isinstance(path[0], int)):
        index = int(path[0]) if path else 0
        return str(given[index]) if index < len(given) else f"input_{index}"
    return ".".join(str(part) for part in path)
