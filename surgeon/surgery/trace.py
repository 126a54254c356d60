"""Ops on raw parameters inside a module's forward: torch.fx traces that forward, and only that one.

All child modules are leaves. A trace is used only if it computes what eager does, in training and in eval mode, since
torch.fx fixes control flow and flags without saying so.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from surgeon.graph.record import fresh_copy, unchanged
from surgeon.modes import set_training
from surgeon.surgery.ops import call_forward
from surgeon.trees import equal, map_tensors

_ATEN = torch.ops.aten
CONTRACTIONS: frozenset[Any] = frozenset(
    {
        functional.linear,
        functional.conv1d,
        functional.conv2d,
        functional.conv3d,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.mv,
        torch.addmm,
        torch.baddbmm,
        torch.einsum,
        torch.tensordot,
        operator.matmul,
        _ATEN.linear.default,
        _ATEN.matmul.default,
        _ATEN.mm.default,
        _ATEN.bmm.default,
        _ATEN.mv.default,
        _ATEN.addmm.default,
        _ATEN.baddbmm.default,
        _ATEN.einsum.default,
        _ATEN.convolution.default,
        _ATEN.conv1d.default,
        _ATEN.conv2d.default,
        _ATEN.conv3d.default,
    }
)
CONTRACTION_METHODS = frozenset({"matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "__matmul__", "__rmatmul__"})


class NotTraceableError(Exception):
    """The forward cannot be rewritten; the message says why."""


class _OwnForward(fx.Tracer):
    """Trace one module's own code."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Leave every child as a call."""
        return True


@dataclass(frozen=True)
class RawOp:
    """One operand of one contraction with parameters.

    Attributes:
        node: name of the op in the traced forward.
        operand: which of the op's input nodes is the activation.
        parameters: names of the parameters that make its other operand, relative to the owner; at least one.
    """

    node: str
    operand: int
    parameters: tuple[str, ...]

    @property
    def place(self) -> str:
        """``node:operand``, as a plan names it."""
        return f"{self.node}:{self.operand}"


def split_place(place: str) -> tuple[str, int]:
    """Return node name and operand of ``node:operand``."""
    node, _, operand = place.partition(":")
    return node, int(operand or 0)


def trace_forward(owner: nn.Module) -> fx.Graph:
    """Return the graph of a module's own forward, with its children as leaves.

    A GraphModule, such as the module of a ``torch.export`` program, has one already: a copy of that is returned.

    Raises:
        NotTraceableError: if torch.fx cannot trace it.
    """
    if isinstance(owner, fx.GraphModule):
        return copy.deepcopy(owner.graph)
    if isinstance(owner, torch.jit.ScriptModule):
        raise NotTraceableError("it is TorchScript")
    try:
        return _OwnForward().trace(owner)
    except Exception as error:  # the forward is foreign code
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise NotTraceableError(f"torch.fx cannot trace the forward of {type(owner).__name__} ({line})") from error


def trace_complaint(owner: nn.Module, graph: fx.Graph, calls: Sequence[Mapping[str, Any]]) -> str:
    """Return how the traced forward differs from eager on some calls; empty if it computes the same.

    Args:
        owner: the module; its buffers are restored.
        graph: its traced forward.
        calls: arguments by name.
    """
    modes = {module: module.training for module in owner.modules()}
    try:
        for training in (True, False):
            set_training(owner, training)
            for call in calls:
                eager = _seeded(owner, lambda given: call_forward(owner, given), call)
                try:
                    traced = _seeded(owner, lambda given: _interpret(owner, graph, given), call)
                except Exception as error:  # a branch that was traced for other arguments
                    return f"its traced form fails with {type(error).__name__} where eager runs"
                if not equal(eager, traced):
                    return f"its traced form differs from eager in {'training' if training else 'eval'} mode"
    finally:
        for module, mode in modes.items():
            module.training = mode
    return ""


def _seeded(owner: nn.Module, run: Callable[[Mapping[str, Any]], Any], call: Mapping[str, Any]) -> Any:
    with unchanged(owner), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return map_tensors(Tensor.detach, run(map_tensors(fresh_copy, call)))


def _positional(owner: nn.Module, call: Mapping[str, Any], graph: fx.Graph) -> list[Any]:
    """Arguments in the order of the graph's placeholders; defaults are filled in."""
    bound = inspect.BoundArguments(inspect.signature(owner.forward), dict(call))
    bound.apply_defaults()
    values: list[Any] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            name = str(node.target)
            if name.startswith("**"):
                values.append(bound.arguments[name[2:]])
            elif name.startswith("*"):
                values += list(bound.arguments[name[1:]])
            else:
                values.append(bound.arguments[name])
    return values


class _Keeping(fx.Interpreter):
    """Run a graph and keep what each node computed."""

    def __init__(self, owner: nn.Module, graph: fx.Graph) -> None:
        super().__init__(owner, graph=graph, garbage_collect_values=False)


def _flat_inputs(owner: nn.Module, graph: fx.Graph, call: Mapping[str, Any]) -> list[Any]:
    if isinstance(owner, fx.GraphModule):
        bound = inspect.BoundArguments(inspect.signature(owner.forward), dict(call))
        return list(graph.process_inputs(*bound.args, **bound.kwargs))
    return _positional(owner, call, graph)


def _interpret(owner: nn.Module, graph: fx.Graph, call: Mapping[str, Any]) -> Any:
    inputs = _flat_inputs(owner, graph, call)
    result = _Keeping(owner, graph).run(*inputs, enable_io_processing=False)
    return graph.process_outputs(result) if isinstance(owner, fx.GraphModule) else result


def raw_ops(graph: fx.Graph, owner: nn.Module) -> tuple[RawOp, ...]:
    """Return the contractions of an activation with something made of parameters only, one entry per such operand."""
    names = {name for name, _ in owner.named_parameters(remove_duplicate=False)}
    active = {node for node in graph.nodes if node.op == "placeholder"}
    made_of: dict[fx.Node, tuple[str, ...]] = {}
    found = []
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if any(part in active for part in inputs):
            active.add(node)
        parameters = _own_parameters(node, owner, names)
        made_of[node] = tuple(dict.fromkeys([*parameters, *(n for part in inputs for n in made_of[part])]))
        if node not in active or not _contracts(node):
            continue
        weights = [name for part in inputs if part not in active for name in made_of[part]]
        if weights:
            operands = [index for index, part in enumerate(inputs) if part in active]
            found += [RawOp(node.name, operand, tuple(dict.fromkeys(weights))) for operand in operands]
    return tuple(found)


def _own_parameters(node: fx.Node, owner: nn.Module, names: set[str]) -> list[str]:
    target = str(node.target)
    if node.op == "get_attr":
        return [target] if target in names else []
    if node.op == "call_module":
        return [name for name in names if name.startswith(f"{target}.")]
    return []


def _contracts(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in CONTRACTION_METHODS
    return node.op == "call_function" and node.target in CONTRACTIONS


def _values(owner: nn.Module, graph: fx.Graph, call: Mapping[str, Any]) -> dict[str, Any]:
    keeping = _Keeping(owner, graph)
    given = map_tensors(fresh_copy, call)
    keeping.run(*_flat_inputs(owner, graph, given), enable_io_processing=False)
    return {node.name: value for node, value in keeping.env.items()}


def _node(graph: fx.Graph, name: str) -> fx.Node:
    found: Iterator[fx.Node] = (node for node in graph.nodes if node.name == name)
    return next(found)


def read_operand(owner: nn.Module, graph: fx.Graph, op: RawOp, call: Mapping[str, Any]) -> Tensor:
    """Return the activation that a raw op received in a call."""
    node = _node(graph, op.node)
    value = _values(owner, graph, call)[node.all_input_nodes[op.operand].name]
    assert isinstance(value, Tensor)
    return value.detach()


def read_result(owner: nn.Module, graph: fx.Graph, op: RawOp, call: Mapping[str, Any]) -> Tensor:
    """Return what a raw op made of it."""
    value = _values(owner, graph, call)[op.node]
    assert isinstance(value, Tensor)
    return value.detach()


def run_raw(owner: nn.Module, graph: fx.Graph, op: RawOp, call: Mapping[str, Any], x: Tensor) -> Tensor:
    """Return a raw op's result with its activation replaced by ``x`` and everything else as in a call."""
    node = _node(graph, op.node)
    values: dict[fx.Node, Any] = {}
    env = _values(owner, graph, call)
    for index, part in enumerate(node.all_input_nodes):
        values[part] = x if index == op.operand else env[part.name]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    function = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target))
    assert callable(function)
    result = function(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result
