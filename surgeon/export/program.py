"""From a module to a ``torch.export`` program that takes and returns named tensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.editing.branch import branches_of
from surgeon.errors import CheckFailedError, SurgeonError
from surgeon.export.capture import packages_of
from surgeon.export.convert import Positional, outputs_by_derivative
from surgeon.export.derivative import record_derivatives
from surgeon.export.outputs import output_names
from surgeon.export.sample import Sample
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.task_calls import task_forward
from surgeon.plan import Task
from surgeon.support.imports import one_line
from surgeon.support.modes import in_evaluation_mode
from surgeon.support.trees import tensors_in

OWNER = "model."
"""Stands in front of the names of the state dict in a program."""


class _Named(nn.Module):
    """A model as a function from named tensors to named outputs; inputs that are not given are those of the example."""

    def __init__(self, model: nn.Module, task: Task, sample: Sample) -> None:
        super().__init__()
        self.model = model
        self._task, self._sample = task, sample

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = task_forward(self._task, self.model, self._sample.with_tensors(self.given(tensors)))
        return dict(zip(output_names(self._task, outputs), tensors_in(outputs), strict=True))

    def given(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """Return all tensors of a batch in order."""
        example = zip(self._sample.names, tensors_in(self._sample.batch), strict=True)
        return [tensors.get(name, tensor) for name, tensor in example]


class _Recorded(_Named):
    """The same for a model that takes derivatives, which are recorded as operations."""

    def __init__(self, model: nn.Module, task: Task, sample: Sample) -> None:
        super().__init__(model, task, sample)
        self._outputs = output_names(task, outputs_on(model, task, [sample.batch])[0])
        function = Positional(model, task, sample)
        # out of sight of the exporter, which would name the tensors of the model after it
        self._recorded = (record_derivatives(function, model, sample, packages_of(model, task)),)

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._outputs, self._recorded[0](*self.given(tensors)), strict=True))


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
    with in_evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        try:
            derived = outputs_by_derivative(model, task, sample) is not None
            wrapped = (_Recorded if derived else _Named)(model, task, sample).eval()
            given = {name: named[name] for name in inputs}
            with _any_size() if derived else nullcontext():
                return torch.export.export(wrapped, (given,), dynamic_shapes={"tensors": shapes})
        except SurgeonError:
            raise
        except Exception as error:
            raise CheckFailedError(
                f"{type(model).__name__} cannot be exported by torch.export: {_reason(error)}; nothing was written"
            ) from error


def _any_size() -> AbstractContextManager[Any]:
    """Let torch.export not conclude from an example that sizes are not 1.

    A recorded derivative broadcasts by sizes such as the number of graphs, which is one less than that of an input.
    """
    from torch.fx.experimental import _config

    return _config.patch("backed_size_oblivious", True)  # type: ignore[attr-defined, no-any-return]


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
