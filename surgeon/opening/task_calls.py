"""Ask a task for batches, outputs, losses and metrics, and check what it returns."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain
from pathlib import PurePath
from traceback import walk_tb
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.core import Group
from surgeon.errors import SurgeonError, TaskError
from surgeon.opening.random_numbers import RandomNumbers
from surgeon.plan import Split, Task
from surgeon.support.imports import one_line

Direction = Literal["min", "max"]


def task_forward(task: Task, model: nn.Module, batch: Any) -> Any:
    """Return the outputs for a batch: the task's ``forward(model, batch)``, or ``model(batch)`` without one."""
    forward = getattr(task, "forward", None)
    return model(batch) if forward is None else forward(model, batch)


def task_loss(task: Task, outputs: Any, batch: Any) -> Tensor:
    """Return the task's loss.

    Returns:
        Shape (), floating; the mean over the batch.

    Raises:
        TaskError: if ``loss`` returns anything else.
    """
    loss = task.loss(outputs, batch)
    if not isinstance(loss, Tensor):
        raise TaskError(f"expected the task's loss to return a scalar tensor, got {type(loss).__name__}: return one")
    if loss.numel() != 1 or not loss.is_floating_point():
        raise TaskError(
            f"expected the task's loss to return one floating number, got shape {tuple(loss.shape)} and {loss.dtype}: "
            "take the mean over the batch"
        )
    return loss.reshape(())


def task_metrics(task: Task, outputs: Any, batch: Any) -> dict[str, tuple[float, float]]:
    """Return metric name to (sum, count) for a batch; the loss is always among them, counted once per batch.

    Raises:
        TaskError: if ``metrics`` returns anything but a dict of pairs of numbers.
    """
    metrics = getattr(task, "metrics", None)
    found = {} if metrics is None else metrics(outputs, batch)
    if not isinstance(found, Mapping):
        raise TaskError(
            f"expected the task's metrics to return a dict of name to (sum, count), got {type(found).__name__}: "
            "return a dict"
        )
    result = {str(name): _sum_and_count(str(name), value) for name, value in found.items()}
    if "loss" not in result:
        result["loss"] = (float(task_loss(task, outputs, batch).detach()), 1.0)
    return result


_PARTS = {task_forward.__code__: "forward", task_loss.__code__: "loss", task_metrics.__code__: "metrics"}


def told(error: BaseException, stage: str = "") -> SurgeonError:
    """Return an error as one whose sentence says what failed: a part of the user's task, where the traceback shows it.

    Args:
        stage: what went on, in words, for errors that may come from anywhere.
    """
    if isinstance(error, SurgeonError):
        return error
    frames = [*walk_tb(error.__traceback__)]
    at = max((number for number, (frame, _) in enumerate(frames) if frame.f_code in _PARTS), default=None)
    if at is None or frames[-1][0].f_globals["__name__"].startswith("surgeon."):
        what = f"{stage} failed with" if stage else "unexpected"
        return SurgeonError(f"{what} {one_line(error)} - in the model, the task, or surgeon itself")
    called, line = frames[at + 1]
    of_torch = called.f_globals["__name__"].startswith("torch.")
    place = "" if of_torch else f" (line {line} of {PurePath(called.f_code.co_filename).name})"
    return TaskError(
        f"the task's {_PARTS[frames[at][0].f_code]} failed with {one_line(error)}{place}: correct the task"
    )


def _sum_and_count(name: str, value: Any) -> tuple[float, float]:
    try:
        total, count = value
        pair = (_number(total), _number(count))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"expected metric {name!r} as a pair of numbers (sum, count), got {value!r}: return the sum and the count"
        ) from error
    if pair[1] < 0:
        raise TaskError(f"expected a count of at least 0 for metric {name!r}, got {pair[1]}: return (sum, count)")
    return pair


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, torch.Tensor) else float(value)


def primary_metric(task: Task) -> tuple[str, Direction]:
    """Return the name of the metric that decides and whether small or large is better; default the loss, small.

    Raises:
        TaskError: if ``primary_direction`` is neither "min" nor "max".
    """
    name = getattr(task, "primary_metric", "loss")
    direction: Any = getattr(task, "primary_direction", "min")
    if not isinstance(name, str) or direction not in get_args(Direction):
        raise TaskError(
            f"expected primary_metric to be a name and primary_direction 'min' or 'max', "
            f"got {name!r} and {direction!r}: correct the task"
        )
    return name, direction


def can_act(task: Task) -> bool:
    """Tell whether the task says how the group acts on both ends: ``act`` and ``act_output``."""
    return callable(getattr(task, "act", None)) and callable(getattr(task, "act_output", None))


def task_symmetry(task: Task, group: Group) -> Symmetry:
    """Return how a group acts on both ends of a task's models; the task has ``act``, and perhaps ``act_output``."""
    acting: Any = task
    return Symmetry(group, acting.act, getattr(acting, "act_output", None), functools.partial(task_forward, task))


def task_batches(task: Task, split: Split, seed: int) -> Iterator[Any]:
    """Return the batches of a split; the first is drawn at once, so that an empty split is found early.

    While the task draws, the global generators of Python, numpy and torch are in a state that begins at the seed, so
    that what it shuffles or augments by them is the same for the same seed, in every process, and changes nothing else.

    Args:
        split: "train", "validation" or "test".
        seed: may decide the order.

    Raises:
        TaskError: if the split is unknown or empty, or ``batches`` returns nothing to iterate over.
    """
    if split not in get_args(Split):
        raise TaskError(f"expected a split, one of {', '.join(get_args(Split))}, got {split!r}: name one of them")
    numbers = RandomNumbers(seed)
    with numbers.drawn():
        batches = task.batches(split, seed)
    if not isinstance(batches, Iterable):
        raise TaskError(
            f"expected the task's batches({split!r}, {seed}) to return something to iterate over, "
            f"got {type(batches).__name__}: return a list, a generator or a DataLoader"
        )
    iterator = _drawn(batches, split, numbers)
    try:
        first = next(iterator)
    except StopIteration:
        raise TaskError(f"the task has no batch in the split {split!r}: return at least one") from None
    return chain([first], iterator)


def _drawn(batches: Iterable[Any], split: Split, numbers: RandomNumbers) -> Iterator[Any]:
    """Pass batches on; an error of the user's own code becomes one sentence."""
    number = 0
    end = object()
    try:
        with numbers.drawn():
            iterator = iter(batches)
        while True:
            with numbers.drawn():
                batch = next(iterator, end)
            if batch is end:
                return
            number += 1
            yield batch
    except (Exception, SystemExit) as error:
        if isinstance(error, SurgeonError):
            raise
        raise TaskError(
            f"the task's batches failed after {number} of the {split} split with {one_line(error)}: correct the task"
        ) from error


def count_batches(task: Task, split: Split, seed: int) -> int:
    """Return the number of batches of a split; one without a length is gone through once."""
    with RandomNumbers(seed).drawn():
        batches = task.batches(split, seed)
    return len(batches) if isinstance(batches, Sized) else sum(1 for _ in task_batches(task, split, seed))
