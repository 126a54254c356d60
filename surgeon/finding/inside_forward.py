"""How the ops on raw parameters inside a module's forward are reached: in a trace of it, or while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from surgeon.finding.ops import Change
from surgeon.finding.own_forward import NotTraceableError
from surgeon.finding.raw_ops import RawOp, Traced, refuse_other_forwards, trace_complaint, trace_forward
from surgeon.finding.watched_ops import changing_met, is_watched, met_in, ops_met, watch_complaint
from surgeon.support.modes import default_dtype


class InsideForward(Protocol):
    """The contractions with parameters that one module's own code computes; calls are arguments by name."""

    def ops(self, call: Mapping[str, Any]) -> Sequence[RawOp]:
        """Return them, one entry per activation."""
        ...

    def operand(self, op: RawOp, call: Mapping[str, Any]) -> Tensor:
        """Return the activation that an op receives in a call."""
        ...

    def result(self, op: RawOp, call: Mapping[str, Any]) -> Tensor:
        """Return what an op makes of it."""
        ...

    def run(self, op: RawOp, call: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return an op's result with its activation replaced by ``x`` and everything else as in a call."""
        ...

    def changing(self, op: RawOp, change: Change) -> AbstractContextManager[None]:
        """While the context is open, the forward goes on with ``change(x, y)`` in place of an op's result y."""
        ...

    def apart(self, op: RawOp, call: Mapping[str, Any] | None) -> Callable[[Tensor], Tensor]:
        """Return an op as a function of its activation, with the present weights.

        Args:
            call: as a plan holds it where that is needed, see :func:`surgeon.finding.sample_calls.sample_calls`.
        """
        ...


@dataclass(frozen=True)
class Watched:
    """The ops that the forward runs into."""

    owner: nn.Module

    def ops(self, call: Mapping[str, Any]) -> Sequence[RawOp]:
        """Return what a call runs into."""
        return ops_met(self.owner, call)

    def operand(self, op: RawOp, call: Mapping[str, Any]) -> Tensor:
        """Return what was met."""
        return met_in(self.owner, op, call).operands[op.operand]

    def result(self, op: RawOp, call: Mapping[str, Any]) -> Tensor:
        """Return what was met."""
        return met_in(self.owner, op, call).result

    def run(self, op: RawOp, call: Mapping[str, Any], x: Tensor) -> Tensor:
        """Run the forward, and then the op once more."""
        return met_in(self.owner, op, call).on(op.operand, x)

    def changing(self, op: RawOp, change: Change) -> AbstractContextManager[None]:
        """Run the forward of the class under a mode."""
        return changing_met(self.owner, op, change)

    def apart(self, op: RawOp, call: Mapping[str, Any] | None) -> Callable[[Tensor], Tensor]:
        """Run the forward for every activation anew, since its weights may be other ones."""
        if call is None:
            raise NotTraceableError("its forward cannot be traced, and the plan holds no call of it")
        if len(met_in(self.owner, op, call).operands) > 1:
            raise NotTraceableError("what it multiplies depends on more of the input than the features")
        return lambda x: self.run(op, call, x)


def inside_forward(owner: nn.Module, node: str) -> InsideForward:
    """Return how an op that a plan names is reached.

    Raises:
        NotTraceableError: if it cannot be.
    """
    if is_watched(node):
        refuse_other_forwards(owner)
        return Watched(owner)
    return Traced(owner, trace_forward(owner))


def choose_inside(owner: nn.Module, calls: Sequence[Mapping[str, Any]]) -> InsideForward:
    """Return how a module's ops are reached in some calls: in a trace where that computes the same, else as it runs.

    Raises:
        NotTraceableError: if neither does.
    """
    with default_dtype(torch.float64), torch.enable_grad():
        try:
            graph = trace_forward(owner)
            if not trace_complaint(owner, graph, calls[:2]):
                return Traced(owner, graph)
        except NotTraceableError:
            refuse_other_forwards(owner)
        complaint = watch_complaint(owner, calls)
    if complaint:
        raise NotTraceableError(complaint)
    return Watched(owner)
