"""Metrics of a model over a split of its task."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.opening.random_numbers import shared
from surgeon.opening.task_calls import primary_metric, task_batches, task_forward, task_loss, task_metrics
from surgeon.opening.tasks import LoadedTask
from surgeon.plan import Split, Task
from surgeon.support.copies import copied
from surgeon.support.imports import one_line
from surgeon.support.modes import device_of, in_evaluation_mode, model_dtype
from surgeon.support.trees import map_tensors, tensors_in, to_device, to_dtype


def fitted(batch: Any, model: nn.Module, device: torch.device | None = None) -> Any:
    """Return a batch where the model is, and in the dtype of weights that are not float32.

    Tasks give float32 unless they mean something else: a float32 model gets its batch as it is.
    """
    moved, dtype = to_device(batch, device or device_of(model)), model_dtype(model)
    return moved if dtype == torch.float32 else to_dtype(moved, dtype)


def rehearse(model: nn.Module, task: Task) -> None:
    """Go through a training step of a model whose dtype is not that of the task's batches, and change nothing.

    Raises:
        TaskError: if forward, loss, gradient or metrics fail, which would end a training, or the gradient is not
            finite, or the weights are float16.
    """
    try:
        batch = next(task_batches(task, "train", 0))
    except TaskError:  # nothing to train on: the task is for looking
        return
    dtype = model_dtype(model)
    if dtype == torch.float16:
        raise TaskError(
            "expected weights that can be trained, got float16, whose gradients and penalties leave its range: convert "
            "the checkpoint to float32 or bfloat16"
        )
    given = {leaf.dtype for leaf in tensors_in(batch) if leaf.is_floating_point()}
    if given <= {dtype}:
        return
    batch = fitted(batch, model)
    twin = copied(model).train()  # as training runs it: some networks give no gradients of their forces otherwise
    weights = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            outputs = task_forward(task, twin, batch)
            found = torch.autograd.grad(task_loss(task, outputs, batch), weights, allow_unused=True)
            task_metrics(task, map_tensors(Tensor.detach, outputs), batch)
        if not all(bool(gradient.isfinite().all()) for gradient in found if gradient is not None):
            raise FloatingPointError("its gradient is not finite")
    except Exception as error:
        words = ", ".join(sorted(str(each).removeprefix("torch.") for each in given))
        raise TaskError(
            f"expected a {str(dtype).removeprefix('torch.')} model that trains on the task's batches in {words}, but a "
            f"step fails with {one_line(error)}: give them in the model's dtype, or convert the checkpoint to float32"
        ) from error


def in_words(task: Task, metrics: Mapping[str, float]) -> str:
    """Return metrics as "force_mae 109 meV/A, loss 0.2", with the units that the task names."""
    units = Judging.of(task).units
    return ", ".join(f"{name} {value:.6g} {units.get(name, '')}".rstrip() for name, value in metrics.items())


ERRORS, SCORES = {"loss", "mae", "mse", "rmse", "error"}, {"accuracy", "acc", "auc", "iou", "r2"}
"""Words in the names of metrics that say by themselves whether small or large is better."""


@dataclass(frozen=True)
class Judging:
    """By which metric results are judged, and in which units metrics are, as records keep it.

    Attributes:
        direction: whether it is better if it is smaller, or larger.
        units: name to unit, as the task names them.
    """

    metric: str
    direction: Literal["min", "max"]
    units: Mapping[str, str]

    @classmethod
    def of(cls, task: Task) -> Judging:
        """Return what a task says."""
        units: Mapping[str, Any] = getattr(task, "units", None) or {}
        told = {str(name): str(unit) for name, unit in units.items()}
        return cls(*primary_metric(task), {name: unit for name, unit in told.items() if unit != "dimensionless"})

    @classmethod
    def of_record(cls, data: Mapping[str, Any] | None) -> Judging:
        """Return what a certificate keeps of it."""
        import msgspec

        return msgspec.convert(data, cls) if data else cls("loss", "min", {})

    def direction_of(self, name: str) -> Literal["min", "max"] | None:
        """Return what is better for a metric; None for another than the primary one whose name does not say it."""
        words = set(name.lower().split("_"))
        if name == self.metric:
            return self.direction
        return "min" if words & ERRORS else "max" if words & SCORES else None

    def change(self, name: str, before: float | None, after: float | None) -> tuple[str, str]:
        """Return in words by how much a metric has changed, and whether it is better, worse or as before."""
        direction = self.direction_of(name)
        if before is None or after is None:
            return "–", "–"
        change = f"{100 * (after - before) / abs(before):+.1f} %" if before else "–"
        if direction is None:
            return change, ""
        return change, "better" if is_better(after, before, direction) else "worse" if after != before else "as before"

    def table(self, before: Mapping[str, float | None], after: Mapping[str, float | None]) -> list[list[str]]:
        """Return metrics before and after as rows of text, below their headings, the one that decides first."""
        names = sorted(after, key=lambda name: name != self.metric)
        rows = [
            [
                self.with_unit(name),
                *("-" if value is None else f"{value:.6g}" for value in (before.get(name), after[name])),
                *self.change(name, before.get(name), after[name]),
            ]
            for name in names
        ]
        return [["metric", "before", "after", "change", ""], *rows]

    def with_unit(self, name: str) -> str:
        """Return "force_mae (meV/A)", or the name alone."""
        return f"{name} ({self.units[name]})" if name in self.units else name


Sums = dict[str, tuple[float, float]]

Look = Callable[[Any, Any], None]


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Sums], list[Sums]] | None = None,
    look: Look | None = None,
) -> dict[str, float]:
    """Return the task's metrics over a split, in eval mode: the sum of sums over the sum of counts.

    Gradients stay enabled, because some models return derivatives of their energy.

    Args:
        split: "train", "validation" or "test".
        share: this process's number and how many share the batches out among them.
        gather: returns the sums of all of them.
        look: given the outputs on every batch, and the batch.

    Raises:
        TaskError: if the split is empty or a metric counts nothing.
    """
    own = metric_sums(model, task, split, share, look)
    parts = [own] if gather is None else gather(own)
    names = list(dict.fromkeys(name for part in parts for name in part))
    sums = {name: sum(part[name][0] for part in parts if name in part) for name in names}
    counts = {name: sum(part[name][1] for part in parts if name in part) for name in names}
    empty = [name for name, count in counts.items() if not count > 0]
    if empty or not counts:
        raise TaskError(
            f"expected metrics with a positive count on the {split} split, got none for "
            f"{', '.join(empty) or 'any metric'}: check metrics() of the task"
        )
    return {name: sums[name] / counts[name] for name in sums}


def evaluate_each(
    models: Mapping[str, nn.Module], task: Task, split: Split, looks: Mapping[str, Look] | None = None
) -> dict[str, dict[str, float]]:
    """Return the metrics of several models by their names; arguments and errors as for :func:`evaluate`."""
    return {name: evaluate(model, task, split, look=(looks or {}).get(name)) for name, model in models.items()}


def evaluate_probes(model: nn.Module, probes: Mapping[str, LoadedTask]) -> dict[str, dict[str, float]]:
    """Return a model's metrics on the test split of every probe; errors as for :func:`evaluate`."""
    return {name: evaluate(model, probe.task, "test") for name, probe in probes.items()}


def metric_sums(
    model: nn.Module, task: Task, split: Split, share: tuple[int, int] = (0, 1), look: Look | None = None
) -> Sums:
    """Return metric name to (sum, count) over every n-th batch of a split, in eval mode.

    Every process of a share runs the model equally often, because the parts of sharded weights are put together in its
    forward: one that has no batch left runs another's, and does not count it.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    with in_evaluation_mode(model):
        batches = task_batches(task, split, 0)
        if share[1] > 1:
            batches = shared(batches, f"the task's batches({split!r}, 0)")
        while group := list(itertools.islice(batches, share[1])):
            own = share[0] < len(group)
            moved = fitted(group[share[0] if own else 0], model)
            outputs = map_tensors(Tensor.detach, task_forward(task, model, moved))
            if not own:
                continue
            if look is not None:
                look(outputs, moved)
            for name, (total, count) in task_metrics(task, outputs, moved).items():
                sums[name] += float(total)
                counts[name] += float(count)
    return {name: (sums[name], counts[name]) for name in sums}


def is_better(value: float, than: float, direction: str) -> bool:
    """Tell whether a metric improved; a non-finite value never does."""
    if not math.isfinite(value):
        return False
    return not math.isfinite(than) or (value < than if direction == "min" else value > than)


def outputs_on(model: nn.Module, task: Task, batches: Sequence[Any]) -> list[Any]:
    """Return the detached outputs of a model on batches, in eval mode."""
    with in_evaluation_mode(model):
        return [map_tensors(Tensor.detach, task_forward(task, model, batch)) for batch in batches]
