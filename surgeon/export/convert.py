"""From a module to an ONNX graph that does not depend on the values of its weights, with their names kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.editing.branch import branches_of
from surgeon.errors import CheckFailedError, SurgeonError, UsageError
from surgeon.export.capture import captured, packages_of
from surgeon.export.derivative import derived_outputs, record_derivatives
from surgeon.export.reasons import reason
from surgeon.export.sample import Sample
from surgeon.opening.task_calls import task_forward
from surgeon.plan import Task
from surgeon.support.imports import import_onnxruntime
from surgeon.support.modes import in_evaluation_mode, names_in_evaluation
from surgeon.support.trees import tensors_in

OPSETS = range(18, 24)
"""Versions of the ONNX operator set that torch's exporter writes."""

_OWNER = "model"


class Positional(nn.Module):
    """A model as a function from the tensors of a batch to those of its outputs, or to some of these by position."""

    def __init__(self, model: nn.Module, task: Task, sample: Sample, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self._task, self._sample, self._kept = task, sample, kept

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen outputs for the tensors of a batch, in the order of ``tensors_in``."""
        outputs = task_forward(self._task, self.model, self._sample.with_tensors(tensors))
        found = tensors_in(outputs)
        return tuple(found if self._kept is None else [found[index] for index in self._kept])


def outputs_by_derivative(model: nn.Module, task: Task, sample: Sample) -> frozenset[int] | None:
    """Return the positions of the outputs that need a derivative inside the forward; None if none is taken."""
    function = Positional(model, task, sample)
    with in_evaluation_mode(function):
        return derived_outputs(function, tensors_in(sample.batch))


def to_onnx(model: nn.Module, task: Task, sample: Sample, opset: int = 18, kept: Sequence[int] | None = None) -> Any:
    """Convert a model with torch's exporter and clean the graph without looking at the values of its weights.

    The exporter's own optimisation merges equal weights and removes additions of zero, so its graph says something
    about the weights; here only nodes that read no tensor of the state dict are computed beforehand.

    Args:
        model: without branches; it is run in eval mode.
        task: says how to call the model.
        sample: the example batch and its dynamic axes.
        opset: version of the operator set.
        kept: positions of the outputs that are wanted, all if None; what only the others need is not exported.

    Returns:
        ``onnx_ir.Model``, whose initializers of the state dict carry the names of the state dict.

    Raises:
        CheckFailedError: if branches are left in the model, or the exporter cannot convert it.
        UsageError: if the operator set is not supported, or the package onnxscript is missing.
    """
    left = branches_of(model)
    if left:
        raise CheckFailedError(
            f"expected a model without branches, but {next(iter(left))} has one ({len(left)} in all): "
            "strip it first, with `surgeon export --drop` or `--fold`"
        )
    if opset not in OPSETS:
        raise UsageError(f"expected an ONNX opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset}: choose one of these")
    _require_packages()
    wrapped: nn.Module = Positional(model, task, sample, kept)
    packages = packages_of(model, task)
    with in_evaluation_mode(wrapped), _quiet():
        try:
            if outputs_by_derivative(model, task, sample) is not None:
                wrapped = record_derivatives(wrapped, model, sample, packages)
            program = torch.onnx.export(
                captured(wrapped, sample, packages),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=list(sample.names),
            )
        except SurgeonError:
            raise
        except Exception as error:
            why = reason(error, model, sample)
            raise CheckFailedError(
                f"{type(model).__name__} cannot be exported to ONNX: {why}; nothing was written"
            ) from error
    assert program is not None
    converted = program.model
    _clean(converted, {f"{_OWNER}.{name}" for name in names_in_evaluation(model)})
    return converted


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        import_onnxruntime()
    except ImportError as error:
        name = (error.name or "onnxscript").partition(".")[0]
        raise UsageError(f"ONNX needs the package {name}: install it with `pip install {name}`") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks, which are about its own insides, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _clean(model: Any, state: set[str]) -> None:
    """Compute what reads no tensor of the state dict, drop what nothing reads, and give the tensors their own names."""
    import onnxscript.optimizer

    def foldable(node: Any) -> bool | None:
        return False if any(value is not None and value.name in state for value in node.inputs) else None

    unlimited = 2**31
    with _quiet():
        onnxscript.optimizer.fold_constants(
            model, should_fold=foldable, input_size_limit=unlimited, output_size_limit=unlimited
        )
        _share_constants(model.graph, state)
        onnxscript.optimizer.remove_unused_nodes(model)
    graph = model.graph
    for node in graph.all_nodes():  # stack traces, with paths of this machine
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
    for value in [value for value in graph.inputs if not list(value.uses()) and not value.is_graph_output()]:
        graph.inputs.remove(value)
    for name in [name for name in graph.initializers if name in state]:
        value = graph.initializers.pop(name)
        value.name = name.removeprefix(f"{_OWNER}.")
        graph.register_initializer(value)


def _share_constants(graph: Any, state: set[str]) -> None:
    """Keep one of several equal constants; tensors of the state dict are left alone, equal or not."""
    kept: dict[tuple[Any, ...], Any] = {}
    for name, value in list(graph.initializers.items()):
        if name in state or value.is_graph_output():
            continue
        tensor = value.const_value
        key = (tuple(tensor.shape), tensor.dtype, hashlib.sha256(tensor.tobytes()).digest())
        first = kept.setdefault(key, value)
        if first is not value:
            for node, index in list(value.uses()):
                node.replace_input_with(index, first)
            graph.initializers.pop(name)
