"""From a module to a ``torch.export`` program that takes and returns named tensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.branch import branches_of
from surgeon.errors import CheckFailedError, SurgeonError
from surgeon.evaluation import in_evaluation_mode
from surgeon.export.outputs import output_names
from surgeon.export.sample import Sample
from surgeon.imports import one_line
from surgeon.tasks import task_forward
from surgeon.trees import tensors_in
from surgeon.types import Task

OWNER = "model."
"""Stands in front of the names of the state dict in a program."""


class _Named(nn.Module):
    """A model as a function from named tensors to named outputs; inputs that are not given are those of the example."""

    def __init__(self, model: nn.Module, task: Task, sample: Sample) -> None:
        super().__init__()
        self.model = model
        self._task, self._sample = task, sample

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        example = zip(self._sample.names, tensors_in(self._sample.batch), strict=True)
        given = [tensors.get(name, tensor) for name, tensor in example]
        outputs = task_forward(self._task, self.model, self._sample.with_tensors(given))
        return dict(zip(output_names(self._task, outputs), tensors_in(outputs), strict=True))


def to_program(model: nn.Module, task: Task, sample: Sample, inputs: Sequence[str] | None = None) -> Any:
    """Export a model with torch.export, without stack traces and without the example's data.

    Args:
        model: without branches; it is run in eval mode.
        task: says how to call the model.
        sample: the example batch and its dynamic axes.
        inputs: names of the inputs; default: those that the model reads.

    Returns:
        ``torch.export.ExportedProgram``, a function of one dict of tensors.

    Raises:
        CheckFailedError: if branches are left in the model, or it cannot be exported.
    """
    left = branches_of(model)
    if left:
        raise CheckFailedError(
            f"expected a model without branches, but {next(iter(left))} has one ({len(left)} in all): "
            "strip it first, with `surgeon export --drop` or `--fold`"
        )
    if inputs is None:
        inputs = _read_by(_program(model, task, sample, sample.names), sample.names)
    program = _program(model, task, sample, inputs)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None  # data of the task
    return program


def _program(model: nn.Module, task: Task, sample: Sample, inputs: Sequence[str]) -> Any:
    named = dict(zip(sample.names, tensors_in(sample.batch), strict=True))
    axes = dict(zip(sample.names, sample.dynamic, strict=True))
    shapes = {name: dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in inputs}
    wrapped = _Named(model, task, sample)
    with in_evaluation_mode(wrapped), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        try:
            given = {name: named[name] for name in inputs}
            return torch.export.export(wrapped, (given,), dynamic_shapes={"tensors": shapes})
        except SurgeonError:
            raise
        except Exception as error:
            raise CheckFailedError(
                f"{type(model).__name__} cannot be exported by torch.export: {_reason(error)}; nothing was written"
            ) from error


def _reason(error: BaseException) -> str:
    """Return what the innermost error says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _read_by(program: Any, names: Sequence[str]) -> list[str]:
    """Return the inputs that some node reads, or that are an output themselves."""
    placed = {node.name: node for node in program.graph.nodes}
    given = [placed[name] for name in program.graph_signature.user_inputs]
    return [name for name, node in zip(names, given, strict=True) if node.users]
