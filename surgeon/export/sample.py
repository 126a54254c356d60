"""The batch that a model is exported with, the names of its tensors, and which of their axes have no fixed size."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from surgeon.errors import CheckFailedError, SurgeonError, TaskError
from surgeon.export.stripped import Stripped
from surgeon.export.trials import try_other_sizes
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.task_calls import can_act, task_batches, task_symmetry
from surgeon.plan import Split, Task
from surgeon.support.imports import close_names
from surgeon.support.modes import model_dtype
from surgeon.support.trees import Place, map_tensors, tensor_leaves, tensors_in, to_dtype

EXAMPLE_SIZE = 7
"""Length of a sliced batch: torch.export takes sizes 0 and 1 for fixed, and a small one is traced quickly."""

OTHER_SIZES = (3, 5, 11, 2)
"""Lengths of the sliced batches with which an exported file is compared, less that of the example."""

COMPARED = 3
"""Batches of other sizes that an exported file has to be compared with at least."""

PER_SPLIT = 3
"""Batches that are looked at from each split, besides the last one and those of new sizes."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

SEEDS = (0, 1, 2, 3)
"""Orders of a task's batches that are tried: batches of graphs have other sizes in another order."""


Axes = tuple[tuple[int, ...], ...]
"""Per tensor, the axes without a fixed size."""


@dataclass(frozen=True)
class Sample:
    """What an export needs to know of a task's batches.

    Attributes:
        batch: the example, on the CPU.
        others: batches of other sizes, for comparison.
        names: one name per tensor of the batch, in the order of ``tensors_in``.
        dynamic: per tensor, the axes without a fixed size.
        tried: of these, per tensor, those that have one size in all batches of the task; the model runs at others.
    """

    batch: Any
    others: tuple[Any, ...]
    names: tuple[str, ...]
    dynamic: Axes
    tried: Axes

    def without_tried(self) -> Sample | None:
        """Return the sample with such axes fixed; None if there are none, or too few sizes are left without them."""
        if not any(self.tried):
            return None
        example = tensors_in(self.batch)
        fixed = tuple(_without(axes, tried) for axes, tried in zip(self.dynamic, self.tried, strict=True))
        others = tuple(batch for batch in self.others if _fits(batch, example, self.tried))
        enough = any(fixed) and len(others) >= COMPARED
        return replace(self, others=others, dynamic=fixed, tried=_none(fixed)) if enough else None

    def told_of_tried(self) -> str:
        """Say which axes are tried, with the size that they have in all batches; nothing if there are none."""
        found = zip(self.names, tensors_in(self.batch), self.tried, strict=True)
        axes = [f"axis {axis} of {name} ({tensor.shape[axis]})" for name, tensor, axes in found for axis in axes]
        told = "of one size in all batches of the task, while the model itself runs at others"
        return f"{told}: {', '.join(axes)}" if axes else ""

    def titles(self) -> dict[tuple[str, int], str]:
        """Return names of free axes, by tensor and axis: ``positions_0``, that of the first one of always equal size.

        An axis that has one size in all batches here has a name of its own: nothing tells what it goes with.
        """
        batches = [tensors_in(batch) for batch in (self.batch, *self.others)]
        first, found = dict[tuple[int, ...], str](), dict[tuple[str, int], str]()
        for index, (name, axes) in enumerate(zip(self.names, self.dynamic, strict=True)):
            for axis in axes:
                sizes, title = tuple(tensors[index].shape[axis] for tensors in batches), f"{name}_{axis}"
                found[name, axis] = first.setdefault(sizes, title) if len(set(sizes)) > 1 else title
        return found

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """Return the example batch with other tensors, in the order of ``tensors_in``."""
        return _with_tensors(self.batch, tensors)


def _without(axes: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in axes if axis not in others)


def _joined(axes: Axes, others: Axes) -> Axes:
    return tuple(tuple(sorted({*pair[0], *pair[1]})) for pair in zip(axes, others, strict=True))


def _fits(batch: Any, example: Sequence[Tensor], axes: Axes) -> bool:
    """Tell whether a batch has the example's sizes on some axes."""
    pairs = zip(tensors_in(batch), example, axes, strict=True)
    return all(tensor.shape[axis] == known.shape[axis] for tensor, known, listed in pairs for axis in listed)


T = TypeVar("T")


def with_free_axes(sample: Sample, export: Callable[[Sample], T]) -> tuple[T, dict[str, Any] | None]:
    """Export with the axes free that have one size in all batches, or with them fixed if that fails.

    Args:
        sample: as :func:`sample_for` gives it.
        export: writes and checks a file.

    Returns:
        What the export returns, and what a certificate says of these axes: None if there are none.

    Raises:
        CheckFailedError: if the export fails, and does so for other reasons than these axes.
    """
    told = sample.told_of_tried()
    if not told:
        return export(sample), None
    try:
        return export(sample), {"free": True, "told": f"{told}; left free in the file, and compared at others"}
    except CheckFailedError as error:
        fixed, why = sample.without_tried(), str(error).removesuffix("; nothing was written")
        if fixed is None:
            raise
    return export(fixed), {"free": False, "told": f"{told}; fixed in the file, since otherwise {why}"}


def sample_for(stripped: Stripped) -> Sample:
    """Return :func:`sample_of` for a model, which is tried on axes that have one size in all batches."""
    return sample_of(stripped.task, model_dtype(stripped.model), partial(_runs, stripped))


def _runs(stripped: Stripped, batch: Any) -> bool:
    """Tell whether a model gives finite outputs for a batch, which the group can act on."""
    try:
        (outputs,) = outputs_on(stripped.model, stripped.task, [batch])
        if stripped.group is not None and can_act(stripped.task):
            symmetry = task_symmetry(stripped.task, stripped.group)
            identity = torch.eye(stripped.group.dimension, dtype=torch.float64)
            symmetry.moved(identity, (batch,))
            symmetry.expected(identity, outputs)
    except Exception:  # whatever the model, or the task, does on a batch that is no longer whole
        return False
    return all(bool(tensor.isfinite().all()) for tensor in tensors_in(outputs))


def sample_of(task: Task, dtype: torch.dtype, runs: Callable[[Any], bool] | None = None) -> Sample:
    """Choose an example batch and find out which axes change from batch to batch.

    An axis is dynamic if its size differs between batches of the task, if the task's ``dynamic_axes`` say so, or if the
    model runs where it is cut or repeated.
    Batches whose tensors share their first axis, and of which a slice can be taken, are sliced, or their rows repeated;
    others are taken as they are.

    Args:
        task: its batches may have several sizes; the last one of a split often is smaller. ``dynamic_axes``, if it has
            them, map the name of an input to its axes without a fixed size.
        dtype: of floating tensors.
        runs: whether the model runs on a batch: then axes that have one size in all batches are tried at others.

    Raises:
        TaskError: if the batches cannot be sliced and have fewer than four sizes, the example is too small, or the
            task's ``dynamic_axes`` do not fit its batches.
    """
    batches = [to_dtype(batch, dtype) for batch in _collect(task)]
    leaves = [tensor_leaves(batch) for batch in batches]
    paths = list(leaves[0])
    if len(paths) != len(tensors_in(batches[0])):
        raise TaskError("expected every tensor of a batch once, but one appears twice in it: give copies")
    same_form = [entry for entry in leaves if list(entry) == paths]
    names = tuple(_name(path, task) for path in paths)
    given = _given_axes(task, names, leaves[0])
    changing = tuple(_changing([entry[path] for entry in same_form]) for path in paths)
    counted = all(0 in axes for axes in given)
    if _sliceable(leaves[0], counted):
        changing = tuple((0, *(axis for axis in axes if axis)) for axes in changing)
        example, others = _slices(batches)
    else:
        example, others = _as_they_are(batches, _joined(changing, given))
    dynamic, tried = _joined(changing, given), _none(names)
    if runs is not None:
        put = partial(_with_tensors, example)
        trial = try_other_sizes(tensors_in(example), changing, lambda tensors: runs(put(tensors)))
        others = (*others, *map(put, trial.batches))
        tried = tuple(_without(axes, known) for axes, known in zip(trial.axes, given, strict=True))
        dynamic = _joined(dynamic, tried)
    if not any(dynamic) or not others:
        raise TaskError(
            "expected batches of different sizes, so that the axes without a fixed size are known, but all batches of "
            "the task have the same: yield a smaller last batch"
        )
    if len(others) < COMPARED:
        raise TaskError(
            f"expected batches of {1 + COMPARED} sizes at least, one to export with and {COMPARED} to compare the file "
            f"at, but those of the task have {1 + len(others)}: let it yield some smaller ones, or name the first axis "
            "of every tensor in its dynamic_axes if that counts samples"
        )
    small = _shortest(example, dynamic)
    if small < 2:
        raise TaskError(f"expected an example batch of length 2 at least, got {small}: let the task yield larger ones")
    return Sample(example, others, names, dynamic, tried)


Shapes = tuple[tuple[int, ...], ...]


def _given_axes(task: Task, names: Sequence[str], leaves: Mapping[Place, Tensor]) -> Axes:
    """Return the axes that the task's ``dynamic_axes`` name."""
    given = getattr(task, "dynamic_axes", None) or {}
    if not isinstance(given, Mapping):
        raise TaskError(f"expected dynamic_axes as a mapping from input names to axes, got {type(given).__name__}")
    unknown = [str(name) for name in given if name not in names]
    if unknown:
        raise TaskError(
            f"expected inputs out of {', '.join(names)} in the task's dynamic_axes, got {unknown[0]!r}: "
            f"the nearest is {close_names(unknown[0], list(names))}"
        )
    ranks = {name: tensor.dim() for name, tensor in zip(names, leaves.values(), strict=True)}
    return tuple(_axes_of(name, given.get(name, ()), ranks[name]) for name in names)


def _axes_of(name: str, axes: Any, rank: int) -> tuple[int, ...]:
    """Return the axes of one input, counted from the front; a mapping from axes to names of sizes gives its keys."""
    listed = [axes] if isinstance(axes, int) else list(axes)
    wrong = [axis for axis in listed if not isinstance(axis, int) or not -rank <= axis < rank]
    if wrong:
        raise TaskError(
            f"expected axes of {name} from {-rank} to {rank - 1} in the task's dynamic_axes, got {wrong[0]!r}: "
            "correct them"
        )
    return tuple(sorted({axis % rank for axis in listed}))


def _collect(task: Task) -> list[Any]:
    found = [batch for split in SPLITS for batch in _ends(_batches(task, split, 0), PER_SPLIT)]
    if not found:
        raise TaskError("expected at least one batch to export the model with, got none: check batches() of the task")
    sizes = {_shapes(batch) for batch in found}
    for seed, split in itertools.product(SEEDS, SPLITS):
        if len(sizes) > COMPARED or _sliceable(tensor_leaves(found[0])):
            break
        for batch in _batches(task, split, seed):
            if _shapes(batch) not in sizes and len(sizes) <= COMPARED:
                sizes.add(_shapes(batch))
                found.append(batch)
    return found


def _batches(task: Task, split: Split, seed: int) -> Iterator[Any]:
    with suppress(SurgeonError):  # a task need not have all splits
        yield from task_batches(task, split, seed)


def _ends(batches: Iterator[Any], count: int) -> list[Any]:
    """Return the first few batches and the last one."""
    return [*itertools.islice(batches, count), *deque(batches, maxlen=1)]


def _none(tensors: Sequence[Any]) -> Axes:
    return ((),) * len(tensors)


def _with_tensors(batch: Any, tensors: Sequence[Tensor]) -> Any:
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), batch)


def _sliceable(leaves: Mapping[Place, Tensor], counted: bool = False) -> bool:
    """Tell whether all tensors share the length of their first axis, and no other structure hangs on it.

    Integers with two axes may point at rows, as edges do, unless the task says that first axes count samples.
    """
    lengths = {tensor.shape[0] if tensor.dim() else -1 for tensor in leaves.values()}
    indices = not counted and any(not tensor.is_floating_point() and tensor.dim() > 1 for tensor in leaves.values())
    return len(lengths) == 1 and min(lengths) > 1 and not indices and any(t.dim() > 2 for t in leaves.values())


def _slices(batches: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return some rows of the first batch, other numbers of them, and those of batches that differ in more."""
    length = min(EXAMPLE_SIZE, *(len(tensor) for tensor in tensors_in(batches[0])))
    example = _sliced(batches[0], length)
    others = [_sliced(batches[0], size) for size in OTHER_SIZES if size != length]
    further = [_sliced(batch, length) for batch in batches[1:]]
    return example, (*others[:COMPARED], *(batch for batch in further if _inner(batch) != _inner(example)))


def _inner(batch: Any) -> list[tuple[int, ...]]:
    return [shape[1:] for shape in _shapes(batch)]


def _as_they_are(batches: Sequence[Any], dynamic: Axes) -> tuple[Any, tuple[Any, ...]]:
    """Return the smallest batch, which is traced the fastest, and one of every other size."""
    one_each = dict[Shapes, Any]()
    for batch in sorted(batches, key=lambda batch: _too_small_and_size(batch, dynamic)):
        one_each.setdefault(_shapes(batch), batch)
    example, *others = one_each.values()
    return example, tuple(others)


def _sliced(batch: Any, length: int) -> Any:
    """Return the first rows of a batch, from the beginning again if there are not enough."""
    return map_tensors(lambda tensor: tensor[torch.arange(length) % len(tensor)], batch)


def _shortest(batch: Any, dynamic: Sequence[Sequence[int]]) -> int:
    """Return the smallest size of a dynamic axis."""
    return min(tensor.shape[axis] for tensor, axes in zip(tensors_in(batch), dynamic, strict=True) for axis in axes)


def _too_small_and_size(batch: Any, dynamic: Sequence[Sequence[int]]) -> tuple[bool, int]:
    """Sort key of examples: those with an axis of length 1, which would be fixed, last; then the fewest entries."""
    return any(dynamic) and _shortest(batch, dynamic) < 2, sum(tensor.numel() for tensor in tensors_in(batch))


def _shapes(batch: Any) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors_in(batch))


def _changing(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(axis for axis in range(tensors[0].dim()) if len({tensor.shape[axis] for tensor in tensors}) > 1)


def _name(path: Place, task: Task) -> str:
    """Return the name of a tensor: its keys; for the items of a bare tuple the task's ``input_names``."""
    given = getattr(task, "input_names", ())
    if len(path) <= 1 and (not path or isinstance(path[0], int)):
        index = int(path[0]) if path else 0
        return str(given[index]) if index < len(given) else f"input_{index}"
    return ".".join(str(part) for part in path)
