"""Measure the ops on raw parameters inside a module's forward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.finding.kernels import Kernel, kernel_of
from surgeon.finding.measured_ops import Found, measure_op
from surgeon.finding.measurement import Measurement, perturbed
from surgeon.finding.ops import Change, Op, linear_deviation
from surgeon.finding.trace import (
    NotTraceableError,
    RawOp,
    changing_raw,
    raw_ops,
    read_operand,
    read_result,
    run_raw,
    trace_complaint,
    trace_forward,
)
from surgeon.recording.record import record
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype


def measure_raw(measurement: Measurement, name: str) -> tuple[list[Found], list[tuple[str, Refusal]] | Refusal]:
    """Measure every contraction with parameters in a module's own forward.

    Args:
        measurement: runs in which the module's calls were kept.
        name: its qualified name.

    Returns:
        The ops that are equivariant linear maps, invariant ones included; and why the others are none, by their
        parameters, or one refusal that says why the forward cannot be rewritten.
    """
    owner = measurement.twin.get_submodule(name)
    calls = measurement.own.calls[name][0]
    if not calls:
        return [], Refusal("never called on the sample batch", "unused")
    try:
        graph = trace_forward(owner)
    except NotTraceableError as error:
        return [], Refusal(f"cannot be relaxed here, because {error}", "unexplained")
    with default_dtype(torch.float64), torch.enable_grad():
        complaint = trace_complaint(owner, graph, [arguments for arguments, _ in calls[:2]])
    if complaint:
        return [], Refusal(f"cannot be relaxed here, because {complaint}", "unexplained")
    ops = raw_ops(graph, owner)
    found: list[Found] = []
    refusals: list[tuple[str, Refusal]] = []
    added: list[tuple[str, Refusal]] = []  # for the other parameters of an op, biases above all
    done: set[str] = set()
    for raw in ops:
        if raw.node in done:  # bilinear: one argument is enough
            continue
        result = _measure(measurement, name, graph, raw, _argument(raw, [each.op for each in found]))
        if isinstance(result, Refusal):
            refusals.append((raw.parameters[0], result))
            added += [(parameter, result) for parameter in raw.parameters[1:]]
        else:
            done.add(raw.node)
            found.append(result)
    taken = {name for each in found for name in each.op.parameters}
    return found, refusals + [(name, why) for name, why in added if name not in taken]


def _argument(raw: RawOp, taken: list[Op]) -> str:
    """Name a raw op after its first parameter; further ops with the same one are numbered."""
    names = {op.argument for op in taken}
    first = raw.parameters[0]
    choices = [first, *(f"{first}_{number}" for number in range(1, len(names) + 1))]
    return next(choice for choice in choices if choice not in names)


def _measure(measurement: Measurement, name: str, graph: fx.Graph, raw: RawOp, argument: str) -> Found | Refusal:
    op = _op(name, graph, raw, argument)
    arguments = measurement.own.calls[name][0][0][0]
    twin = measurement.twin
    with torch.no_grad(), default_dtype(torch.float64), perturbed(twin, inside=name):
        real = op.read_in(twin, arguments)
        deviation = linear_deviation(lambda x: op.run(twin, arguments, x), real, torch.Generator().manual_seed(0))
    if deviation:
        return Refusal(deviation, "not linear")
    return measure_op(measurement, op, _kernels(measurement, op, real))


def _op(name: str, graph: fx.Graph, raw: RawOp, argument: str) -> Op:
    def owner(model: nn.Module) -> nn.Module:
        return model.get_submodule(name)

    def run(model: nn.Module, arguments: Mapping[str, Any], x: Tensor) -> Tensor:
        return run_raw(owner(model), graph, raw, arguments, x)

    def read_in(model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        return read_operand(owner(model), graph, raw, arguments)

    def read_out(model: nn.Module, arguments: Mapping[str, Any], result: Any) -> Tensor:
        return read_result(owner(model), graph, raw, arguments)

    def changing(model: nn.Module, change: Change) -> AbstractContextManager[None]:
        return changing_raw(owner(model), graph, raw, change)

    return Op(name, argument, (), (), raw.place, run, read_in, read_out, changing, raw.parameters)


def _kernels(measurement: Measurement, op: Op, real: Tensor) -> list[Kernel]:
    """Run the op once more under the recorder, for the settings of its convolution."""
    arguments = measurement.own.calls[op.module][0][0][0]
    with torch.no_grad(), default_dtype(torch.float64):
        recording = record(measurement.twin, real, forward=lambda model, x: op.run(model, arguments, x))
    nodes = [node for node in recording.graph.nodes if node.target is torch.ops.aten.convolution.default]
    return [kernel_of(node, recording) for node in nodes[-1:]]  # the op itself runs last
