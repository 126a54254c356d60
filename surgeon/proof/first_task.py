"""A first task file for a checkpoint, and whether a task does what training, measuring and stripping need of it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import ModelNotFoundError, TaskError, UsageError
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.content import write_text
from surgeon.opening.evaluation import fitted
from surgeon.opening.models import find_model
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.planning import DEFAULT_GROUP
from surgeon.opening.remote.fetch import open_anywhere
from surgeon.opening.task_calls import can_act, task_batches, task_forward, task_loss, task_metrics
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import Split
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.equivariance import task_equivariance
from surgeon.registry import has_task, installed_adapters
from surgeon.support.copies import copied
from surgeon.support.imports import one_line
from surgeon.support.trees import map_tensors, tensors_in

TODO = "TODO"
"""What is left to the user begins with this word."""

MOST_KEYS = 40
SYMMETRIC = 1e-3
"""Largest relative error at which a float32 network counts as symmetric here; plans decide by more than one figure."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FIRST_TASK = Template('''\
"""Data, loss and symmetry of a network, for `surgeon`: complete what says TODO."""

from __future__ import annotations

# Then: surgeon init $name --task $file
# What it saw in this checkpoint: $seen
$keys


class Task:
    """Only batches and loss are required; `surgeon.Task` lists everything that may be here."""

    primary_metric = "mae"
    units = {}  # {"mae": "meV/A"}: shown with every figure
$model
    def batches(self, split, seed):
        """Yield fresh batches of "train", "validation" or "test": tensors, dicts, tuples, graphs; nothing is reused."""
        raise NotImplementedError("TODO: read your data")

    def forward(self, model, batch):
        """Run the network on a batch."""
        return model($arguments)

    def loss(self, outputs, batch):
        """Return the mean loss of a batch."""
        return (outputs - batch["target"]).square().mean()

    def metrics(self, outputs, batch):
        """Return sums and counts, so that averages over batches of any size are right."""
        error = (outputs - batch["target"]).abs()
        return {"mae": (float(error.sum()), error.numel())}

    # How the group acts: needed to relax, and to have the symmetry measured. g is a float64 matrix, under O3 of shape
    # (3, 3). Nothing is changed in place. Remove both methods if you only want to fine-tune.
    def act(self, g, batch):
        """Return the batch as g turns it: every vector in it, labels among them; scalars stay."""
        # g = g.to(batch["positions"]); return {**batch, "positions": batch["positions"] @ g.T}
        raise NotImplementedError("TODO: turn the batch")

    def act_output(self, g, outputs):
        """Return the outputs as g turns them: vectors do, invariants do not."""
        # return outputs @ g.to(outputs).T
        raise NotImplementedError("TODO: turn the outputs")


def make_task():
    """Return the task; its arguments can be given by --task-args."""
    return Task()
''')


@dataclass(frozen=True)
class TaskStep:
    """One thing that a task has to do: ``outcome``, and in words what was seen, or what is missing."""

    name: str
    outcome: Literal["yes", "to do", "NO", "not reached", "not there"]
    note: str


@dataclass(frozen=True)
class FirstTask:
    """What :func:`init_task` has done.

    Attributes:
        written: the new file; None if the checkpoint's family has a ready task, or one was given.
        family: name of the adapter whose ready task is enough; empty for none.
        seen: what the checkpoint holds, in words.
        steps: what the task does and does not do yet.
    """

    written: Path | None
    family: str
    seen: str
    steps: list[TaskStep] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing fails and nothing is left to do; a task may do without a symmetry."""
        return all(step.outcome in ("yes", "not there") for step in self.steps)


def init_task(
    path: str | Path,
    target: str | Path = "task.py",
    group: str | None = None,
    *,
    options: OpenOptions | None = None,
    force: bool = False,
) -> FirstTask:
    """Write a first task file for a checkpoint and try it; with a task in ``options``, try that and write nothing.

    Args:
        path: the checkpoint, or an address on the Hub.
        target: the task file.
        group: the symmetry that is tried; if None O3, and SO3 if the network is not symmetric under that.
        options: how to find the model, and what is trusted.
        force: replace an existing file.

    Raises:
        ExistsError: if there is such a file already.
        CheckpointError: if the checkpoint cannot be read.
        TrustError: if it can only be read by running the code inside.
    """
    given = options or OpenOptions()
    if given.task:
        return FirstTask(None, "", "", try_task(path, group, given))
    checkpoint = open_anywhere(path, trust_pickle=given.trust_pickle, entry=given.entry)
    model = _known_model(checkpoint, given)
    seen = _seen(checkpoint, model)
    family = _family(checkpoint, model)
    if family:
        return FirstTask(None, family, seen)
    write_text(target, _first_task(checkpoint, Path(target).name, seen, model, given), force=force)
    steps = try_task(path, group, dataclasses.replace(given, task=str(target)))
    return FirstTask(Path(target), "", seen, steps)


def _known_model(checkpoint: Checkpoint, options: OpenOptions) -> nn.Module | None:
    try:
        return find_model(checkpoint, options, beside=False).model
    except ModelNotFoundError:
        return None


def _seen(checkpoint: Checkpoint, model: nn.Module | None) -> str:
    total = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()}))
    kind = "" if model is None else f", of the class {type(model).__module__}.{type(model).__qualname__}"
    return f"{len(checkpoint.tensors)} tensors, {total:,} numbers, {dtypes}, container {checkpoint.container}{kind}"


def _family(checkpoint: Checkpoint, model: nn.Module | None) -> str:
    """Return the adapter that knows the network and has a ready task for it; empty if there is none."""
    for name, adapter in installed_adapters().items():
        if has_task(adapter) and (
            adapter.recognise(checkpoint.tensors) is not None
            or (model is not None and (adapter.describe(model) or adapter.usage(model, "")) is not None)
            or adapter.rebuild(checkpoint.tensors) is not None
        ):
            return name
    return ""


def _first_task(checkpoint: Checkpoint, file: str, seen: str, model: nn.Module | None, options: OpenOptions) -> str:
    """Return the text; whatever a file says is put into comments as ``ascii`` writes it, on one line each."""
    shapes = [f"#   {ascii(name)[1:-1]}: {list(tensor.shape)}" for name, tensor in checkpoint.tensors.items()]
    more = [f"#   and {len(shapes) - MOST_KEYS} more"] if len(shapes) > MOST_KEYS else []
    arguments = ['batch["x"]']
    if model is not None:
        parameters = inspect.signature(model.forward).parameters.values()
        needed = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
        arguments = [f'batch["{name}"]' for name in needed if name not in ("args", "self")] or arguments
    return _FIRST_TASK.substitute(
        name=ascii(checkpoint.path.name)[1:-1],
        file=ascii(file)[1:-1],
        seen=ascii(seen)[1:-1],
        keys="\n".join([*shapes[:MOST_KEYS], *more]),
        model=_model_member(model, options),
        arguments=", ".join(arguments),
    )


def _model_member(model: nn.Module | None, options: OpenOptions) -> str:
    if options.factory is not None:
        module, _, name = options.factory.partition(":")
        body = f"from {module} import {name}\n\n        return {name}(**{dict(options.factory_arguments)!r})"
    elif model is not None:
        return "\n    # The checkpoint itself says how its network is built, so there is no `model` here.\n"
    else:
        body = 'raise NotImplementedError("TODO: build your network here; its weights are read from the checkpoint")'
    return f'\n    def model(self):\n        """Build the network, with any weights."""\n        {body}\n'


def try_task(path: str | Path, group: str | None = None, options: OpenOptions | None = None) -> list[TaskStep]:
    """Open a model by a task, draw batches, make a training step on a copy, and try the group's action.

    Args:
        group: the symmetry; if None O3, and SO3 if the network is not symmetric under that.
        options: the task among them.

    Returns:
        One entry for each of the four, in this order; what comes after one that does not work is not reached.
    """
    opened: list[Workspace] = []
    tried: dict[str, Callable[[], str | None]] = {
        "model": lambda: _opened(path, options, opened),
        "batches": lambda: _batches(opened[0]),
        "training step": lambda: _step(opened[0]),
        "symmetry": lambda: _symmetry(opened[0], group),
    }
    steps: dict[str, TaskStep] = {}
    for name, attempt in tried.items():
        if any(steps[needed].outcome != "yes" for needed in ("model", "batches") if needed in steps):
            steps[name] = TaskStep(name, "not reached", "")
            continue
        try:
            note = attempt()
            steps[name] = TaskStep(name, "not there" if note is None else "yes", _NO_SYMMETRY if note is None else note)
        except Exception as error:  # code of the user
            steps[name] = TaskStep(name, "to do" if TODO in str(error) else "NO", one_line(error))
    return list(steps.values())


_NO_SYMMETRY = "no act and act_output: fine-tuning works, relaxing and measuring the symmetry need them"


def _opened(path: str | Path, options: OpenOptions | None, opened: list[Workspace]) -> str:
    opened.append(open_path(path, options))
    count = sum(parameter.numel() for parameter in opened[0].model.parameters())
    return f"{type(opened[0].model).__name__}, {count:,} parameters, by {opened[0].found.words}"


def _batches(workspace: Workspace) -> str:
    task = workspace.require_task().task
    firsts = {split: next(task_batches(task, split, 0)) for split in SPLITS}
    shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors_in(firsts["train"]))
    return f"one of each split; tensors of the first training batch: {shapes}"


def _step(workspace: Workspace) -> str:
    task, model = workspace.require_task().task, copied(workspace.model).train()
    batch = fitted(next(task_batches(task, "train", 0)), model)
    outputs = task_forward(task, model, batch)
    loss = task_loss(task, outputs, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = sum(weight.grad is not None and bool(weight.grad.any()) for weight in weights)
    if not bool(torch.isfinite(loss)) or not reached:
        raise TaskError(f"expected a finite loss whose gradient reaches weights, got {loss.item()}, {reached} reached")
    metrics = task_metrics(task, map_tensors(Tensor.detach, outputs), batch)
    means = ", ".join(f"{name} {total / count:.4g}" for name, (total, count) in metrics.items())
    return f"loss {loss.item():.4g}, its gradient reaches {reached} of {len(weights)} parameter tensors; {means}"


def _symmetry(workspace: Workspace, group: str | None) -> str | None:
    """Say how large the error is; None if the task does not say how the group acts."""
    task = workspace.require_task()
    if not can_act(task.task):
        return None
    chosen = parse_group(group or DEFAULT_GROUP)
    (batch,) = sample_batches(task, 1)
    g = chosen.test_elements(torch.Generator(), 1)[-1].g
    turned: Any = task.task.act(g, batch)  # type: ignore[attr-defined]
    if all(torch.equal(one, other) for one, other in zip(tensors_in(batch), tensors_in(turned), strict=False)):
        raise TaskError("expected `act` to change a batch, but every tensor of it stays as it is: turn its vectors")
    errors = task_equivariance(workspace.model, task, chosen, MeasureSettings(2, 1))
    worst = max(errors.values(), key=lambda error: error.maximum)
    if not worst.maximum <= SYMMETRIC and group is None:
        return (
            f"{_symmetry(workspace, 'SO3')}, while under {worst.worst} of {chosen.name} they do by {worst.maximum:.1e}"
        )
    if not worst.maximum <= SYMMETRIC:
        raise UsageError(
            f"f(gx) and g f(x) differ by {worst.maximum:.1e} (relative) under {worst.worst} of {chosen.name}: correct "
            "`act` and `act_output`, or name the op that breaks the symmetry by `surgeon inspect --find-breaks`"
        )
    return f"under {chosen.name} f(gx) and g f(x) differ by at most {worst.maximum:.1e} (relative)"
