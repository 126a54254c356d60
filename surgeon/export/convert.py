"""From a module to an ONNX graph that does not depend on the values of its weights, with their names kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from surgeon.errors import CheckFailedError, UsageError
from surgeon.export.capture import quiet
from surgeon.export.decompose import decompose, divide_by_tensors
from surgeon.export.program import OWNER, to_program
from surgeon.export.reasons import reason
from surgeon.export.sample import Sample
from surgeon.plan import Task
from surgeon.support.imports import import_onnxruntime
from surgeon.support.modes import in_evaluation_mode, names_in_evaluation

OPSETS = range(18, 24)
"""Versions of the ONNX operator set that torch's exporter writes."""


def to_onnx(
    model: nn.Module,
    task: Task,
    sample: Sample,
    opset: int = 18,
    kept: Sequence[int] | None = None,
) -> Any:
    """Convert a model with torch's exporter and clean the graph without looking at the values of its weights.

    The exporter's own optimisation merges equal weights and removes additions of zero, so its graph says something
    about the weights; here only nodes that read no tensor of the state dict are computed beforehand.

    Args:
        model: without branches; it is run in eval mode.
        task: says how to call the model.
        sample: the example batch and its dynamic axes.
        kept: positions of the outputs that are wanted, all if None; what only the others need is not exported.

    Returns:
        ``onnx_ir.Model``, whose initializers of the state dict carry the names of the state dict.

    Raises:
        CheckFailedError: if branches are left in the model, or the exporter cannot convert it.
        UsageError: if the operator set is not supported, or the package onnxscript is missing.
    """
    if opset not in OPSETS:
        raise UsageError(f"expected an ONNX opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset}: choose one of these")
    _require_packages()
    program = to_program(model, task, sample, sample.names, kept)
    with in_evaluation_mode(model), quiet():
        try:
            converted = _translated(program, opset, sample.names)
        except Exception as error:
            why = reason(error, model)
            raise CheckFailedError(
                f"{type(model).__name__} cannot be exported to ONNX: {why}; nothing was written"
            ) from error
    _clean(converted, {OWNER + name for name in names_in_evaluation(model)})
    return converted


def _translated(program: Any, opset: int, names: Sequence[str]) -> Any:
    """Return the graph that torch's exporter makes of a program, which is decomposed quickly if that is enough."""
    divide_by_tensors(program.graph_module.graph)
    program.graph_module.recompile()
    traced = program.graph_module
    program.run_decompositions = partial(decompose, program)
    export = partial(torch.onnx.export, program, dynamo=True, optimize=False, verbose=False, opset_version=opset)
    try:
        exported: Any = export(input_names=[*names])
    except Exception:
        program._graph_module = traced
        del program.run_decompositions
        exported = export(input_names=[*names])
    return exported.model


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        import_onnxruntime()
    except ImportError as error:
        name = (error.name or "onnxscript").partition(".")[0]
        raise UsageError(f"ONNX needs the package {name}: install it with `pip install {name}`") from error


def _clean(model: Any, state: set[str]) -> None:
    """Compute what reads no tensor of the state dict, drop what nothing reads, and give the tensors their own names."""
    import onnxscript.optimizer

    def foldable(node: Any) -> bool | None:
        return False if any(value is not None and value.name in state for value in node.inputs) else None

    unlimited = 2**31
    with quiet():
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
        value.name = name.removeprefix(OWNER)
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
