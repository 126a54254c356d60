"""Weights as the task's own ``load_model`` gives them, for files that a library converts while it opens them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surgeon.errors import CheckpointError, TaskError
from surgeon.files.checkpoint import Checkpoint
from surgeon.opening.loading import holds, named_as
from surgeon.opening.tasks import LoadedTask
from surgeon.support.imports import importable, one_line

LOADER = "load_model() of the task"


def own_loader(task: LoadedTask | None) -> Callable[[Path], nn.Module] | None:
    """Return what opens a file by the task's ``load_model``; None if it has none.

    Raises:
        TaskError: if that is no method; and, when it is called, if it fails or returns no module.
    """
    method: Any = getattr(task.task, "load_model", None) if task else None
    if task is None or method is None:
        return None
    if not callable(method):
        raise TaskError(f"expected `load_model` of {task.spec} to be a method, got {type(method).__name__}")

    def load(path: Path) -> nn.Module:
        with importable(task.path.parent if task.path else Path.cwd()):
            try:
                model = method(path)
            except Exception as error:  # code of the user, and of a library
                raise TaskError(
                    f"load_model() of {task.spec} failed on {str(path)!r} with {one_line(error)}: correct it"
                ) from error
        if not isinstance(model, nn.Module):
            raise TaskError(
                f"expected load_model() of {task.spec} to return a torch.nn.Module, got {type(model).__name__}: "
                "return the model"
            )
        return model

    return load


def as_loaded(checkpoint: Checkpoint, task: LoadedTask | None) -> Checkpoint:
    """Return a checkpoint with the weights that the task's ``load_model`` makes of its file.

    Where that gives what the file holds, the checkpoint stays as it was read, and can be written again.

    Args:
        task: whose ``load_model`` counts, if it has one.

    Raises:
        TaskError: if it fails.
    """
    load = own_loader(task)
    if load is None or checkpoint.converted:
        return checkpoint
    state = {key: value for key, value in load(checkpoint.path).state_dict().items() if isinstance(value, Tensor)}
    stored = named_as(checkpoint, state)
    if stored.keys() == state.keys() and all(holds(state[key], stored[key]) for key in state):
        return checkpoint
    changed = sum(key not in stored or not holds(state[key], stored[key]) for key in state)
    words = f"{changed} of the {len(state)} tensors that {LOADER} gives are not in the file as they are"
    return dataclasses.replace(checkpoint, tensors=state, prefix="", converted=words)


def refuse_converted(model: nn.Module, tensors: Mapping[str, Tensor], source: str, where: str) -> None:
    """Refuse a model that was built with most of the file's weights and some others: what built it converts them.

    Raises:
        CheckpointError: naming one of the others.
    """
    same, others = 0, {}
    for name, parameter in model.named_parameters():
        stored = tensors.get(name)
        if (
            stored is None
            or is_lazy(parameter)
            or stored.shape != parameter.shape
            or bool((stored == stored.reshape(-1)[:1]).all())
        ):
            continue  # zeros and ones are nobody's weights
        if torch.equal(parameter.detach().to(stored.dtype), stored):
            same += stored.numel()
        else:
            others[name] = stored.numel()
    if others and same > sum(others.values()):
        raise CheckpointError(
            f"{source} gives a model that holds the weights of {where} already, but {len(others)} tensors of them in "
            f"another form (first {next(iter(others))}): loaded as they are in the file they would be wrong; give the "
            "task a `load_model(path)` that opens the file by its library, save the checkpoint with the current "
            "version of that, or install an adapter that opens it"
        )
