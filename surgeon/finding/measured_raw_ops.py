"""Find sites by measurement among the ops on raw parameters inside a module's forward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.finding.found import Found
from surgeon.finding.inside_forward import InsideForward, choose_inside
from surgeon.finding.measured_ops import measure_op, structure_of
from surgeon.finding.measurement import Measurement, differ, other_random_numbers, perturbed
from surgeon.finding.ops import Change, Op, linear_deviation
from surgeon.finding.own_forward import NotTraceableError
from surgeon.finding.raw_ops import RawOp
from surgeon.recording.kernels import Kernel, kernel_of
from surgeon.recording.record import record
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype
from surgeon.support.trees import REAL_PAIRS, as_numbers, as_pairs


def measure_raw(measurement: Measurement, name: str) -> tuple[list[Found], list[tuple[str, Refusal]] | Refusal]:
    """Measure every contraction with parameters in a module's own forward.

    Args:
        measurement: runs in which the module's calls were kept.

    Returns:
        The ops that are equivariant linear maps, invariant ones included; and why the others are none, by their
        parameters, or one refusal that says why the forward cannot be rewritten.
    """
    calls = [arguments for arguments, _ in measurement.own.first[name]]
    if not calls:
        return [], Refusal("never called on the sample batch", "unused")
    try:
        inside = choose_inside(measurement.twin.get_submodule(name), calls)
        with default_dtype(torch.float64), torch.enable_grad():
            ops = inside.ops(calls[0])
    except NotTraceableError as error:
        return [], Refusal(f"cannot be relaxed here, because {error}", "unexplained")
    found: list[Found] = []
    refusals: list[tuple[str, Refusal]] = []
    added: list[tuple[str, Refusal]] = []  # for the other parameters of an op, biases above all
    for _, operands in groupby(ops, key=attrgetter("node")):
        activations = list(operands)
        argument = _argument(activations[0], [each.op for each in found])
        results = [_measure_one(measurement, name, inside, raw, argument) for raw in activations]
        chosen = _chosen([result for result in results if isinstance(result, Found)])
        if chosen is not None:
            found.append(chosen)
            continue
        for raw, result in zip(activations, results, strict=True):
            assert isinstance(result, Refusal)
            refusals.append((raw.parameters[0], result))
            added += [(parameter, result) for parameter in raw.parameters[1:]]
    taken = {name for each in found for name in each.op.parameters}
    return found, refusals + [(name, why) for name, why in added if name not in taken]


def _chosen(found: list[Found]) -> Found | None:
    """Of the activations that a product is linear in choose one, which is enough: the first that the group moves."""
    moved = (each for each in found if not each.type_in.is_invariant)
    return next(moved, found[0] if found else None)


def _argument(raw: RawOp, taken: list[Op]) -> str:
    """Name a raw op after its first parameter; further ops with the same one are numbered."""
    names = {op.argument for op in taken}
    first = raw.parameters[0]
    choices = [first, *(f"{first}_{number}" for number in range(1, len(names) + 1))]
    return next(choice for choice in choices if choice not in names)


def _measure_one(
    measurement: Measurement, name: str, inside: InsideForward, raw: RawOp, argument: str
) -> Found | Refusal:
    arguments, twin = measurement.own.first[name][0][0], measurement.twin
    with torch.no_grad(), default_dtype(torch.float64), perturbed(twin, inside=name):
        place = (REAL_PAIRS,) if inside.operand(raw, arguments).is_complex() else ()
        op = _OpInside(name, argument, place, node=raw.place, parameters=raw.parameters, raw=raw, inside=inside)
        real = op.read_in(twin, arguments)
        deviation = linear_deviation(lambda x: op.run(twin, arguments, x), real, torch.Generator().manual_seed(0))
        if measurement.drawn is not None:
            with other_random_numbers():
                if differ(op.read_in(twin, arguments), real):
                    return measurement.drawn.refusal
    if deviation:
        return Refusal(deviation, "not linear")
    try:
        with torch.no_grad(), default_dtype(torch.float64), perturbed(twin, inside=name):
            structure = structure_of(measurement, op)
        return measure_op(measurement, op, structure, _kernels(measurement, op, real))
    except NotTraceableError as error:
        return Refusal(str(error), "unexplained")


@dataclass(frozen=True)
class _OpInside(Op):
    """An op on raw parameters; it is read and run through the forward of its module in the measured twin."""

    raw: RawOp = field(kw_only=True)
    inside: InsideForward = field(kw_only=True, compare=False)

    def run(self, model: nn.Module, arguments: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return the result with the features replaced by x."""
        return as_pairs(self.inside.run(self.raw, arguments, as_numbers(x) if self.path_in else x))

    def read_in(self, model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        """Return the features that the op received in a call of its module."""
        return as_pairs(self.inside.operand(self.raw, arguments))

    def read_out(self, model: nn.Module, arguments: Mapping[str, Any], result: Any) -> Tensor:
        """Return what the op made of them."""
        return as_pairs(self.inside.result(self.raw, arguments))

    def changing(self, model: nn.Module, change: Change) -> AbstractContextManager[None]:
        """Let the module go on with changed results while the context is open."""
        return self.inside.changing(self.raw, change)


def _kernels(measurement: Measurement, op: Op, real: Tensor) -> list[Kernel]:
    """Run the op once more under the recorder, for the settings of its convolution."""
    arguments, twin = measurement.own.first[op.module][0][0], measurement.twin
    with torch.no_grad(), default_dtype(torch.float64):
        owner = twin.get_submodule(op.module)  # not the twin: the recorder goes through every module
        recording = record(owner, real, forward=lambda _, x: op.run(twin, arguments, x))
    nodes = [node for node in recording.graph.nodes if node.target is torch.ops.aten.convolution.default]
    return [kernel_of(node, recording) for node in nodes[-1:]]  # the op itself runs last
