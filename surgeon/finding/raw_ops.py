"""The ops on raw parameters inside a module's traced forward: which there are, and running one of them by itself.

All child modules are leaves. A trace is used only if it computes what eager does, in training and in eval mode, since
torch.fx fixes control flow and flags without saying so.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from surgeon.finding.ops import Change, call_forward
from surgeon.finding.own_forward import NotTraceableError, trace_own_forward
from surgeon.recording.record import unchanged
from surgeon.support.modes import modes_kept, set_training
from surgeon.support.trees import equal, fresh_copy, map_tensors

_SPACES: tuple[Any, ...] = (functional, torch, torch.linalg, operator, torch.ops.aten)
CONTRACTION_METHODS = frozenset(
    {"matmul", "mm", "bmm", "mv", "dot", "inner", "addmm", "addmv", "baddbmm", "__matmul__", "__rmatmul__"}
)
_NAMES = CONTRACTION_METHODS | {"linear", "bilinear", "einsum", "tensordot", "linalg_matmul", "convolution"}
CONTRACTIONS: frozenset[Any] = frozenset(
    getattr(space, name)
    for space in _SPACES
    for name in _NAMES | {"conv1d", "conv2d", "conv3d"}
    if hasattr(space, name)
)
"""Functions, and for aten ops all overloads, that sum products of two operands."""
_ADDED_LAST = frozenset({"linear", "conv1d", "conv2d", "conv3d", "convolution"})
_ADDED_FIRST = frozenset({"addmm", "addmv", "baddbmm"})


@dataclass(frozen=True)
class RawOp:
    """One operand of one contraction with parameters.

    Attributes:
        node: name of the op in the traced forward.
        operand: which of the op's input nodes is the activation.
        parameters: names of the parameters that make its other operands, relative to the owner; first those that are
            multiplied, at least one.
    """

    node: str
    operand: int
    parameters: tuple[str, ...]

    @property
    def place(self) -> str:
        """``node:operand``, as a plan names it."""
        return f"{self.node}:{self.operand}"


def raw_op_at(place: str, parameters: tuple[str, ...]) -> RawOp:
    """Return the raw op that a plan names."""
    return RawOp(*split_place(place), parameters)


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
    refuse_other_forwards(owner)
    return trace_own_forward(owner)


def refuse_other_forwards(owner: nn.Module) -> None:
    """Check that what a module runs is the forward of its class.

    Raises:
        NotTraceableError: if it is not.
    """
    if isinstance(owner, torch.jit.ScriptModule):
        raise NotTraceableError("it is TorchScript")
    if "forward" in vars(owner):
        raise NotTraceableError(
            "its forward was replaced by an attribute of the instance, which its class does not know"
        )


def trace_complaint(owner: nn.Module, graph: fx.Graph, calls: Sequence[Mapping[str, Any]]) -> str:
    """Return how the traced forward differs from eager on some calls; empty if it computes the same.

    Args:
        owner: the module; its buffers are restored.
        calls: arguments by name.
    """
    return eager_complaint(owner, calls, lambda given: _interpret(owner, graph, given), "its traced form")


def eager_complaint(
    owner: nn.Module, calls: Sequence[Mapping[str, Any]], run: Callable[[Mapping[str, Any]], Any], form: str
) -> str:
    """Return how a form of a forward differs from eager on some calls, in training and in eval mode; empty if not.

    Args:
        run: given arguments by name, runs that form.
        form: what to call it.
    """
    with modes_kept(owner):
        for training in (True, False):
            set_training(owner, training)
            for call in calls:
                complaint = _complaint_in_mode(owner, call, run, form, "training" if training else "eval")
                if complaint:
                    return complaint
    return ""


def _complaint_in_mode(
    owner: nn.Module, call: Mapping[str, Any], run: Callable[[Mapping[str, Any]], Any], form: str, mode: str
) -> str:
    """Compare outputs, and what became of the arguments and of the buffers."""
    try:
        eager = _seeded(owner, lambda given: call_forward(owner, given), call)
    except Exception as error:  # the forward is foreign code
        return f"it fails with {type(error).__name__} in {mode} mode"
    try:
        other = _seeded(owner, run, call)
    except Exception as error:  # a branch that was traced for other arguments
        return f"{form} fails with {type(error).__name__} where eager runs"
    return "" if equal(eager, other) else f"{form} differs from eager in {mode} mode"


def _seeded(owner: nn.Module, run: Callable[[Mapping[str, Any]], Any], call: Mapping[str, Any]) -> Any:
    """Return the result, the arguments afterwards, and the buffers afterwards."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    with unchanged(owner), torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)
        if devices:  # torch.manual_seed would also seed devices that were not forked
            torch.cuda.manual_seed_all(0)
        given = map_tensors(fresh_copy, call)
        result = run(given)
        # Copies, since buffers are put back.
        return map_tensors(lambda tensor: tensor.detach().clone(), (result, given, dict(owner.named_buffers())))


def _positional(owner: nn.Module, call: Mapping[str, Any], graph: fx.Graph) -> list[Any]:
    """Arguments in the order of the graph's placeholders; defaults are filled in."""
    bound = inspect.BoundArguments(inspect.signature(owner.forward), dict(call))
    bound.apply_defaults()
    values: list[Any] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            name = str(node.target)
            values.append(bound.arguments[name.lstrip("*")])
    return values


class _Keeping(fx.Interpreter):
    """Run a graph and keep what each node computed."""

    def __init__(self, owner: nn.Module, graph: fx.Graph, changes: Sequence[tuple[RawOp, Change]] = ()) -> None:
        super().__init__(owner, graph=graph, garbage_collect_values=False)
        self.changes = changes

    def run_node(self, node: fx.Node) -> Any:
        """Go on with changed results."""
        result = super().run_node(node)
        for op, change in self.changes:
            if op.node == node.name:
                result = change(self.env[node.all_input_nodes[op.operand]], result)
        return result

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Take ``*args`` and ``**kwargs`` as one value each; the base class lets ``*args`` take all that is left."""
        if str(target).startswith("*") and not isinstance(self.module, fx.GraphModule):
            return next(self.args_iter)
        return super().placeholder(target, args, kwargs)


def _flat_inputs(owner: nn.Module, graph: fx.Graph, call: Mapping[str, Any]) -> list[Any]:
    if isinstance(owner, fx.GraphModule):
        bound = inspect.BoundArguments(inspect.signature(owner.forward), dict(call))
        return list(graph.process_inputs(*bound.args, **bound.kwargs))
    return _positional(owner, call, graph)


def _interpret(
    owner: nn.Module, graph: fx.Graph, call: Mapping[str, Any], changes: Sequence[tuple[RawOp, Change]] = ()
) -> Any:
    inputs = _flat_inputs(owner, graph, call)
    result = _Keeping(owner, graph, changes).run(*inputs, enable_io_processing=False)
    return graph.process_outputs(result) if isinstance(owner, fx.GraphModule) else result


class _TracedForward:
    """What runs instead of a module's forward while some of its ops are changed."""

    def __init__(self, owner: nn.Module, graph: fx.Graph) -> None:
        self.__signature__ = inspect.signature(owner.forward)
        self.owner, self.graph = owner, graph
        self.changes: list[tuple[RawOp, Change]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the trace."""
        call = self.__signature__.bind(*args, **kwargs).arguments
        return _interpret(self.owner, self.graph, call, self.changes)


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
        factors = _factors(node)
        weights = [name for part in inputs if part in factors and part not in active for name in made_of[part]]
        if weights:
            added = [name for part in inputs if part not in factors and part not in active for name in made_of[part]]
            operands = [index for index, part in enumerate(inputs) if part in active and part in factors]
            found += [RawOp(node.name, operand, tuple(dict.fromkeys([*weights, *added]))) for operand in operands]
    return tuple(found)


def _own_parameters(node: fx.Node, owner: nn.Module, names: set[str]) -> list[str]:
    target = str(node.target)
    if node.op == "get_attr":
        return [target] if target in names else []
    if node.op == "call_module":
        return [name for name in names if name.startswith(f"{target}.")]
    return []


def _contracts(node: fx.Node) -> bool:
    if node.kwargs.get("out") is not None:  # the result lives in a tensor that later ops may read directly
        return False
    if node.op == "call_method":
        return node.target in CONTRACTION_METHODS
    target = getattr(node.target, "overloadpacket", node.target)
    return node.op == "call_function" and target in CONTRACTIONS


def _factors(node: fx.Node) -> set[fx.Node]:
    target = getattr(node.target, "overloadpacket", node.target)
    name = str(target) if node.op == "call_method" else getattr(target, "__name__", "")
    nodes: set[fx.Node] = set()
    fx.node.map_arg(multiplied(name, node.args, node.kwargs), nodes.add)
    return nodes


def multiplied(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return those arguments of a contraction of this name that are multiplied, not only added, such as a bias."""
    position = 0 if name in _ADDED_FIRST else 2 if name in _ADDED_LAST else None
    added = () if position is None else ("bias",) if name in _ADDED_LAST else ("bias", "input")
    return (
        [arg for index, arg in enumerate(args) if index != position],
        {key: value for key, value in kwargs.items() if key not in added},
    )


@dataclass(frozen=True)
class Traced:
    """The ops of a module's traced forward; calls are arguments by name."""

    owner: nn.Module
    graph: fx.Graph

    def ops(self, call: Mapping[str, Any]) -> Sequence[RawOp]:
        """Return what the trace shows."""
        return raw_ops(self.graph, self.owner)

    def operand(self, op: RawOp, call: Mapping[str, Any]) -> Tensor:
        """Return the activation that an op received in a call."""
        value: Tensor = self._values(call)[self._node(op).all_input_nodes[op.operand]]
        return value.detach()

    def result(self, op: RawOp, call: Mapping[str, Any]) -> Tensor:
        """Return what an op made of it."""
        value: Tensor = self._values(call)[self._node(op)]
        return value.detach()

    def run(self, op: RawOp, call: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return an op's result with its activation replaced by ``x`` and everything else as in a call."""
        node = self._node(op)
        values = {**self._values(call), node.all_input_nodes[op.operand]: x}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        function: Any = node.target if node.op == "call_function" else getattr(torch.Tensor, str(node.target))
        result: Tensor = function(*args, **kwargs)
        return result

    def apart(self, op: RawOp, call: Mapping[str, Any] | None) -> Callable[[Tensor], Tensor]:
        """Return an op as a function of its activation, which runs what the op needs of the trace and no more."""
        return partial(self._apart, self._node(op), op.operand)

    def _apart(self, node: fx.Node, operand: int, x: Tensor) -> Tensor:
        keeping = _Keeping(self.owner, self.graph)
        keeping.env[node.all_input_nodes[operand]] = x
        needed, open_ = {node}, [node]
        while open_:
            more = {part for part in open_.pop().all_input_nodes if part not in keeping.env} - needed
            needed |= more
            open_ += more
        if any(part.op == "placeholder" for part in needed):
            raise NotTraceableError("what it multiplies depends on more of the input than the features")
        for part in self.graph.nodes:
            if part in needed:
                keeping.env[part] = keeping.run_node(part)
        result: Tensor = keeping.env[node]
        return result

    @contextmanager
    def changing(self, op: RawOp, change: Change) -> Iterator[None]:
        """While the context is open, the trace runs instead of the forward, with ``change(x, y)`` for an op's y."""
        owner = self.owner
        if not isinstance(vars(owner).get("forward"), _TracedForward):
            owner.forward = _TracedForward(owner, self.graph)
        forward: Any = owner.forward
        forward.changes.append((op, change))
        try:
            yield
        finally:
            forward.changes.remove((op, change))
            if not forward.changes:
                del owner.forward

    def _node(self, op: RawOp) -> fx.Node:
        found: fx.Node = next(node for node in self.graph.nodes if node.name == op.node)
        return found

    def _values(self, call: Mapping[str, Any]) -> dict[fx.Node, Any]:
        keeping, given = _Keeping(self.owner, self.graph), map_tensors(fresh_copy, call)
        with torch.enable_grad():  # it may differentiate
            keeping.run(*_flat_inputs(self.owner, self.graph, given), enable_io_processing=False)
        return keeping.env
