"""Record one real run of a model as an aten-level torch.fx graph.

Symbolic tracing fails on most real equivariant networks and is sometimes silently wrong; what one run *dispatches* can
always be recorded, TorchScript, ``.item()`` and gradients inside the forward included. The recorder only watches: ops
return their real values.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as module_hooks

from surgeon.recording.scripted import as_written
from surgeon.support.compiler import DispatchMode
from surgeon.support.trees import equal, fresh_copy, map_tensors, tensors_in


@dataclass(frozen=True)
class Recording:
    """One run of a model.

    Attributes:
        graph: aten-level fx graph. Each node's ``meta`` holds ``owner`` (qualified name of the innermost module that
            was running; the empty string is the model itself), ``call_index`` (0 for its first call), ``shape`` and
            ``dtype`` (None for non-tensors), ``backward`` (True if autograd ran the op inside the forward), and
            ``activation`` (True if the value depends on an input, or on a tensor of unknown origin), ``parameters``
            (qualified names of the parameters that the value is made of, perhaps with constants, if no activation is),
            ``numbers`` (True if it is made of whole numbers of unknown origin alone, such as lists of positions),
            ``silent`` (True if parameters meet activations in the op, all of which are 0), and ``sources`` (the nodes
            that it is made of: its arguments, and what was written since into the memory of these through views).
        values: the tensors that the model holds or makes of these alone, such as kernels, by reference: one that was
            written in place later holds the later values. Or copies of all tensors, if these were asked for.
        calls: qualified module name to number of calls.
        results: the nodes of the tensors that each call of a module returned, by name and call.
        aliases: module or parameter name to all names of the same one, if it stands under several.
        outputs: what the run returned.
    """

    graph: fx.Graph
    values: Mapping[fx.Node, Tensor]
    calls: Mapping[str, int]
    results: Mapping[tuple[str, int], tuple[fx.Node, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    outputs: Any


_ATEN = torch.ops.aten
_OF_SHAPES = {
    *(_ATEN.zeros_like, _ATEN.ones_like, _ATEN.full_like, _ATEN.empty_like),
    *(_ATEN.new_zeros, _ATEN.new_ones, _ATEN.new_full, _ATEN.new_empty, _ATEN.new_empty_strided),
}
"""What these return depends on the shape of a tensor, not on its values."""

_UNDEFINED = {*(_ATEN.empty, _ATEN.empty_strided), *(_ATEN.empty_like, _ATEN.new_empty, _ATEN.new_empty_strided)}
"""These return whatever there was in memory."""

_PICKS = (_ATEN.index.Tensor, _ATEN.index_select.default, _ATEN.gather.default, _ATEN.take.default)
"""These return entries of a tensor, by numbers."""


class _Recorder(DispatchMode):
    """Append one fx node per dispatched op; tensors are followed by identity as long as they live."""

    def __init__(self, model: nn.Module, copies: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = copies
        self.graph = fx.Graph()
        self.calls: Counter[str] = Counter()
        self.results: dict[tuple[str, int], tuple[fx.Node, ...]] = {}
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[tuple[str, int]] = [("", 0)]
        self.nodes: dict[int, fx.Node] = {}
        self.living: dict[int, weakref.ref[Tensor]] = {}
        self.values: dict[fx.Node, Tensor] = {}
        self.order: dict[fx.Node, int] = {}
        self.writes: dict[int, list[fx.Node]] = {}
        self.constants = 0
        self.named_state: dict[int, str] = {}
        self.named_storage: dict[int, str] = {}
        self.parameter_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.named_state.setdefault(id(tensor), name)
            if memory_of(tensor):
                self.named_storage.setdefault(memory_of(tensor), name)
        attributes = (value for module in model.modules() for value in vars(module).values())
        self.kept = {id(tensor) for value in attributes for tensor in plain_tensors(value)}

    def add_inputs(self, inputs: Any) -> None:
        for index, tensor in enumerate(tensors_in(inputs)):
            if id(tensor) not in self.named_state:
                self._bind(tensor, self.graph.placeholder(f"input_{index}"), frozenset(), activation=True)

    def _meta(
        self,
        parameters: frozenset[str],
        activation: bool,
        shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        owner, call_index = self.stack[-1]
        return {
            "owner": owner,
            "call_index": call_index,
            "shape": shape,
            "dtype": dtype,
            "parameters": parameters,
            "activation": activation,
            "numbers": False,
            "silent": False,
            "sources": (),
            "backward": torch._C._current_graph_task_id() != -1,
        }

    def _bind(self, tensor: Tensor, node: fx.Node, parameters: frozenset[str], activation: bool) -> None:
        node.meta = self._meta(parameters, activation, tuple(tensor.shape), tensor.dtype)
        self.order.setdefault(node, len(self.order))
        key = id(tensor)
        self.nodes[key] = node
        self.living[key] = weakref.ref(tensor, lambda _: self._release(key))  # another tensor may get its identity
        if self.copies:
            with without_recording():
                self.values[node] = tensor.detach().clone()
        elif node.op == "get_attr":
            self.values[node] = tensor

    def _release(self, key: int) -> None:
        del self.nodes[key], self.living[key]

    def node_of(self, tensor: Tensor) -> fx.Node:
        """Return the node of a tensor; one first seen as an argument is a parameter, a buffer, or a constant."""
        if id(tensor) not in self.nodes:
            name = self.named_state.get(id(tensor))
            if name is None:  # `.data` and views made before the run share the storage
                name = self.named_storage.get(memory_of(tensor))
            if name is None:
                name, self.constants = f"_constant_{self.constants}", self.constants + 1
            parameters = frozenset({name}) & self.parameter_names
            # A constant that a module keeps as a plain attribute is part of the model; others may be inputs.
            unknown = name.startswith("_constant_") and id(tensor) not in self.kept
            node = self.graph.create_node("get_attr", name)
            self._bind(tensor, node, frozenset(parameters), unknown)
            node.meta["numbers"] = unknown and not (tensor.is_floating_point() or tensor.is_complex())
        return self.nodes[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list[Tensor]()
        node_args = tuple(_with_nodes(arg, self.node_of, given) for arg in args)
        node_kwargs = {key: _with_nodes(value, self.node_of, given) for key, value in kwargs.items()}
        made_of = [self.sources_of(tensor) for tensor in given]
        sources = tuple(dict.fromkeys(source for each in made_of for source in each))
        if func is _ATEN.convolution.default:
            self.values.setdefault(self.node_of(args[1]), args[1])  # its kernel may be computed of weights
        result = func(*args, **kwargs)
        if self.copies and getattr(func, "overloadpacket", None) in _UNDEFINED:
            with without_recording():
                result.zero_()  # the same in every run
        # Given to create_node, the arguments would be searched for symbolic numbers, which takes longer than the rest.
        node = self.graph.create_node("call_function", func)
        node.args, node.kwargs = node_args, node_kwargs
        self.order[node] = len(self.order)
        used = () if getattr(func, "overloadpacket", None) in _OF_SHAPES else sources
        flowing = frozenset[str]().union(*(source.meta["parameters"] for source in used))
        numbers = all(source.meta["numbers"] for source in used if source.meta["activation"])
        picked = numbers and bool(flowing) and func in _PICKS  # kernels are made so, turned by lists of positions
        activation = not picked and any(source.meta["activation"] for source in used)
        silent = activation and bool(flowing) and _all_zero(given, made_of)
        self._bind_result(result, node, frozenset() if activation else flowing, activation)
        node.meta |= {"numbers": numbers and activation, "silent": silent, "sources": used}
        self._note_writes(func, node, args, kwargs, result)
        return result

    def sources_of(self, tensor: Tensor) -> tuple[fx.Node, ...]:
        """Return a tensor's node, and those that have written into its memory since, through other tensors."""
        node = self.node_of(tensor)
        later = self.writes.get(memory_of(tensor), ()) if self.writes else ()
        return node, *(write for write in later if self.order[write] > self.order[node])

    def _note_writes(self, func: Any, node: fx.Node, args: Any, kwargs: Any, result: Any) -> None:
        """Keep which ops have written into some memory; what is new there has nothing to do with them."""
        arguments, written, makes_memory = _signature(func)
        if self.writes and makes_memory:
            for tensor in tensors_in(result):
                self.writes.pop(memory_of(tensor), None)
        if written:
            given = {**dict(zip(arguments, args, strict=False)), **kwargs}
            for tensor in tensors_in([given.get(name) for name in written]):
                self.writes.setdefault(memory_of(tensor), []).append(node)

    def _bind_result(self, result: Any, node: fx.Node, parameters: frozenset[str], activation: bool) -> None:
        if isinstance(result, Tensor):
            self._bind(result, node, parameters, activation)
            return
        node.meta = self._meta(parameters, activation)
        for index, part in enumerate(result) if isinstance(result, (tuple, list)) else ():
            if isinstance(part, Tensor):
                getter = self.graph.create_node("call_function", operator.getitem, (node, index))
                self._bind(part, getter, parameters, activation)
                getter.meta["sources"] = (node,)

    def enter(self, module: nn.Module, args: Any) -> None:
        """Global forward pre-hook: push the module that starts to run."""
        name = self.names.get(id(module))
        if name is None:  # a module created during the run belongs to its caller
            self.stack.append(self.stack[-1])
            return
        self.stack.append((name, self.calls[name]))
        self.calls[name] += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Global forward hook: pop it again, and keep what it returned."""
        call = self.stack.pop()
        if id(module) in self.names:
            self.results[call] = tuple(self.nodes[id(t)] for t in tensors_in(output) if id(t) in self.nodes)


@lru_cache(maxsize=1024)
def _signature(op: Any) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Return an op's arguments by name, those it writes to, and whether its results have memory of their own."""
    schema = getattr(op, "_schema", None)
    if schema is None:
        return (), (), False
    written = tuple(each.name for each in schema.arguments if each.alias_info and each.alias_info.is_write)
    own = not any(each.alias_info for each in schema.returns)
    return tuple(each.name for each in schema.arguments), written, own


def memory_of(tensor: Tensor) -> int:
    """Return where a tensor's numbers are; 0 if there are none, or not in one piece."""
    own = tensor.layout is torch.strided and tensor.numel() and not tensor._is_zerotensor()
    return tensor.untyped_storage().data_ptr() if own else 0


def without_recording() -> Any:
    """Return a context in which no op is dispatched to what records or watches."""
    return torch._C._DisableTorchDispatch()


def plain_tensors(value: Any) -> Iterator[Tensor]:
    """Yield an attribute's tensors: itself, or those in a list, tuple or dict."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Tensor))
    elif isinstance(value, dict):
        yield from (item for item in value.values() if isinstance(item, Tensor))


def _all_zero(given: Sequence[Tensor], made_of: Sequence[tuple[fx.Node, ...]]) -> bool:
    """Tell whether all activations among the arguments of an op are 0."""
    sources = zip(given, made_of, strict=True)
    active = [tensor for tensor, nodes in sources if any(node.meta["activation"] for node in nodes)]
    with without_recording():
        return not any(tensor.layout != torch.strided or bool(tensor.any()) for tensor in active)


def _with_nodes(value: Any, node_of: Callable[[Tensor], fx.Node], given: list[Tensor]) -> Any:
    """Replace tensors by nodes inside the lists and tuples that aten arguments are made of, and list them."""
    if isinstance(value, Tensor):
        given.append(value)
        return node_of(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_nodes(part, node_of, given) for part in value)
    return value


@contextmanager
def _watching_modules(recorder: _Recorder) -> Iterator[None]:
    # Global hooks, because children of ScriptModules refuse hooks of their own, and the model stays as it is.
    handles = (
        module_hooks.register_module_forward_pre_hook(recorder.enter),
        module_hooks.register_module_forward_hook(recorder.leave, always_call=True),  # also if the model catches
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_CONTAINERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore what a forward of ``model`` may change: buffers, plain attributes, and the global random state."""
    kept = [(module, dict(module._buffers), _plain_attributes(module)) for module in model.modules()]
    values = {
        id(buffer): buffer.detach().clone()
        for _, buffers, _ in kept
        for buffer in buffers.values()
        if buffer is not None
    }
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, buffers, attributes in kept:
            _restore(module, buffers, attributes, values)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _CONTAINERS and not _is_hooks(name)}


def _is_hooks(name: str) -> bool:
    return name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))


def _restore(
    module: nn.Module, buffers: Mapping[str, Tensor | None], attributes: Mapping[str, Any], values: Mapping[int, Tensor]
) -> None:
    """Rebind what was rebound, and copy back what was written in place."""
    with torch.no_grad():
        for buffer in buffers.values():
            if buffer is not None and not equal(buffer, values[id(buffer)]):
                buffer.copy_(values[id(buffer)])
    if isinstance(module, torch.jit.ScriptModule):  # its state is fixed
        return
    now = module._buffers
    if list(now) != list(buffers) or any(now[name] is not buffer for name, buffer in buffers.items()):
        now.clear()
        now.update(buffers)
    own = vars(module)
    for name in [name for name in _plain_attributes(module) if name not in attributes]:
        del own[name]
    for name, value in attributes.items():
        if own.get(name) is not value:
            own[name] = value


def record(
    model: nn.Module, *inputs: Any, forward: Callable[..., Any] | None = None, copies: bool = False
) -> Recording:
    """Run ``model`` once, in its present mode, and record every op that it dispatches.

    Neither the model (its buffers included) nor the inputs are changed: the run sees copies of the input tensors.

    Args:
        model: any module; its parameters and buffers are named by its ``named_parameters`` and ``named_buffers``.
        *inputs: arguments of the forward; nests of tensors and plain objects are understood.
        forward: how to run it, ``forward(model, *inputs)``; default ``model(*inputs)``.
        copies: keep a copy of every tensor as it was computed; without, none of the activations outlives its use.

    Returns:
        The recording; gradients of the outputs can not be taken further.

    Example:
        >>> recording = record(nn.Linear(3, 2), torch.randn(5, 3))
        >>> [str(node.target) for node in recording.graph.nodes][-2:]
        ['aten.addmm.default', 'output']
    """
    recorder = _Recorder(model, copies)
    with unchanged(model):
        given = map_tensors(fresh_copy, inputs)
        recorder.add_inputs(given)
        with _watching_modules(recorder), as_written(model), recorder:
            outputs = forward(model, *given) if forward else model(*given)
    returned = tensors_in(outputs)
    sources = tuple(source for tensor in returned for source in recorder.sources_of(tensor))
    recorder.graph.output(tuple(recorder.node_of(tensor) for tensor in returned)).meta["sources"] = sources
    detached = map_tensors(Tensor.detach, outputs)
    return Recording(recorder.graph, recorder.values, dict(recorder.calls), recorder.results, _aliases(model), detached)


def computed_bytes(recording: Recording) -> int:
    """Return how many bytes the activations have that a run computes, in its own dtype: about what training keeps."""
    nodes = (node for node in recording.graph.nodes if node.op == "call_function" and node.meta["activation"])
    made = [node.meta for node in nodes if node.meta["dtype"] is not None and not _is_view(node.target)]
    return sum(math.prod(meta["shape"]) * meta["dtype"].itemsize for meta in made)


def differentiates(recording: Recording) -> bool:
    """Tell whether autograd ran in the forward, as where forces are the gradient of an energy."""
    return any(node.meta.get("backward") for node in recording.graph.nodes)


def _is_view(op: Any) -> bool:
    return any(each.alias_info is not None for each in op._schema.returns) if hasattr(op, "_schema") else False


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {each[0]: tuple(each) for each in names.values() if len(each) > 1}
