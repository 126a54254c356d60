"""Run a TorchScript module op by op in Python, where torch.export can follow it.

TorchScript's own interpreter knows sizes only as numbers, so that no axis inside a scripted module can be dynamic. Its
graph, however, says everything that it does. Here each node of the graph becomes one call from Python, of the same
kernel on the same values, so that the results have the same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckFailedError

_Values = dict[int, Any]
_MISSING = object()


class Unscripted(nn.Module):
    """A TorchScript module as an eager one with the same parameters, buffers, children and names.

    Args:
        scripted: a module from ``torch.jit.script``, ``trace`` or ``load``; its tensors are shared, not copied.
        name: its qualified name, for messages.

    Raises:
        CheckFailedError: if its graph has a node without a counterpart in Python.
    """

    def __init__(self, scripted: Any, name: str) -> None:
        super().__init__()
        for key, value in scripted.named_parameters(recurse=False):
            is_parameter = isinstance(value, nn.Parameter)  # after torch.jit.load they are plain tensors
            self.register_parameter(key, value if is_parameter else nn.Parameter(value, value.requires_grad))
        for key, value in scripted.named_buffers(recurse=False):
            self.register_buffer(key, value)
        for key, child in scripted.named_children():
            self.add_module(key, Unscripted(child, f"{name}.{key}"))
        self.training = scripted.training
        self._title = name
        self._defaults: dict[str, Any] = {}
        self._block: _Block | None = None
        if "forward" in scripted._c._method_names():
            self._defaults = _arguments(scripted)
            self._block = _Translator(scripted, name).block(scripted.inlined_graph)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Return what the scripted module returns; named tuples come as plain ones."""
        given = {**self._defaults, **dict(zip(self._defaults, arguments, strict=False)), **named}
        missing = [name for name, value in given.items() if value is _MISSING]
        if self._block is None or missing or len(arguments) > len(self._defaults) or len(given) > len(self._defaults):
            raise TypeError(f"{self._title} takes the arguments {', '.join(self._defaults)}, got others")
        return self._block.run({}, [self, *given.values()])[0]


def _arguments(scripted: Any) -> dict[str, Any]:
    """Return the forward's arguments with their defaults."""
    arguments = scripted._c._get_method("forward").schema.arguments[1:]
    return {item.name: item.default_value if item.has_default_value() else _MISSING for item in arguments}


@dataclass(frozen=True)
class _Step:
    """One node: a function of some values, which gives others."""

    run: Callable[..., Sequence[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class _Condition:
    """``if``: the outputs of one of two blocks, which see the values outside."""

    choice: int
    blocks: tuple[_Block, _Block]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class _Loop:
    """``for`` and ``while``: a block from its own number and what is carried to a condition and what is carried on."""

    inputs: tuple[int, ...]
    body: _Block
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class _Block:
    """A straight run of steps: a whole graph, a branch of a condition, the body of a loop."""

    inputs: tuple[int, ...]
    steps: tuple[_Step | _Condition | _Loop, ...]
    outputs: tuple[int, ...]

    def run(self, values: _Values, arguments: Sequence[Any] = ()) -> list[Any]:
        """Return the outputs; ``values`` holds what has been computed outside, by number, and is added to."""
        values.update(zip(self.inputs, arguments, strict=True))
        for step in self.steps:
            match step:
                case _Step(run, inputs, outputs):
                    found = run(*(values[number] for number in inputs))
                case _Condition(choice, blocks, outputs):
                    found = blocks[0 if values[choice] else 1].run(values)
                case _Loop(inputs, body, outputs):
                    limit, go_on, *found = (values[number] for number in inputs)
                    turn = 0
                    while go_on and turn < limit:
                        go_on, *found = body.run(values, [turn, *found])
                        turn += 1
            values.update(zip(outputs, found, strict=True))
        return [values[number] for number in self.outputs]


class _Translator:
    """Turns the graph of one module into blocks."""

    def __init__(self, scripted: Any, name: str) -> None:
        self._name = name
        self._owners: dict[int, Any] = {}
        self._root = scripted

    def block(self, graph: Any) -> _Block:
        """Translate a graph or a block of one."""
        inputs = tuple(value.unique() for value in graph.inputs())
        if not self._owners:
            self._owners[inputs[0]] = self._root
        steps = tuple(self._step(node) for node in graph.nodes())
        returned = graph.return_node() if hasattr(graph, "return_node") else graph.returnNode()
        return _Block(inputs, steps, tuple(value.unique() for value in returned.inputs()))

    def _step(self, node: Any) -> _Step | _Condition | _Loop:
        inputs = tuple(value.unique() for value in node.inputs())
        outputs = tuple(value.unique() for value in node.outputs())
        blocks = [self.block(block) for block in node.blocks()]
        match node.kind():
            case "prim::If":
                return _Condition(inputs[0], (blocks[0], blocks[1]), outputs)
            case "prim::Loop":
                return _Loop(inputs, blocks[0], outputs)
            case "prim::Constant":
                return _Step(_constant(_value_of(node)), (), outputs)
            case "prim::GetAttr":
                return _Step(self._attribute(node), inputs, outputs)
            case kind if kind in _STRUCTURE:
                return _Step(_STRUCTURE[kind], inputs, outputs)
        return _Step(self._call(node), inputs, outputs)

    def _attribute(self, node: Any) -> Callable[..., Sequence[Any]]:
        """Tensors, children and the training flag are read when the module runs, anything else is a constant."""
        key, (owner,) = node.s("name"), node.inputs()
        found = getattr(self._owners.get(owner.unique()), key, None)
        if isinstance(found, torch.jit.ScriptModule):
            self._owners[node.output().unique()] = found

        def read(module: nn.Module) -> Sequence[Any]:
            own = key == "training" or any(
                key in held for held in (module._parameters, module._buffers, module._modules)
            )
            return (getattr(module, key) if own else found,)

        return read

    def _call(self, node: Any) -> Callable[..., Sequence[Any]]:
        kind = node.kind()
        namespace, _, name = kind.partition("::")
        try:
            schema = torch._C.parse_schema(node.schema())
            overload = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")
        except (AttributeError, RuntimeError):
            schema, overload = None, None
        scalar = _PYTHON.get(kind)
        if overload is None and scalar is None:
            place = " ".join(str(node.sourceRange()).split())
            raise CheckFailedError(
                f"{self._name} is a TorchScript module ({self._root.original_name}) with the operation {kind}, which "
                f"cannot be run outside of TorchScript ({place[:200]}): build the model without scripting it"
            )
        keywords = [item.name if item.kwarg_only else None for item in schema.arguments] if schema else []
        several = schema is not None and len(schema.returns) != 1
        return _caller(overload, scalar, keywords, several)


def _caller(
    overload: Callable[..., Any] | None,
    scalar: Callable[..., Any] | None,
    keywords: Sequence[str | None],
    several: bool,
) -> Callable[..., Sequence[Any]]:
    """Call the op, or for numbers and lists of them its counterpart in Python, which also takes symbolic sizes."""

    def call(*values: Any) -> Sequence[Any]:
        if overload is None or (scalar is not None and (scalar in _ALWAYS or not any(map(_is_tensor, values)))):
            assert scalar is not None
            return (scalar(*values),)
        positional = [value for key, value in zip(keywords, values, strict=True) if key is None]
        named = {key: value for key, value in zip(keywords, values, strict=True) if key is not None}
        found = overload(*positional, **named)
        return (() if found is None else tuple(found)) if several else (found,)

    return call


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_is_tensor, value)))


def _value_of(node: Any) -> Any:
    """Return the value of a constant; functions, which only remain of inlined calls, have none."""
    return None if str(node.output().type()) == "Function" else node.output().toIValue()


def _constant(value: Any) -> Callable[..., Sequence[Any]]:
    return lambda: (value,)


def _raise(message: str, *_: Any) -> Sequence[Any]:
    raise RuntimeError(message)


def _pairs(*items: Any) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_STRUCTURE: Mapping[str, Callable[..., Sequence[Any]]] = {
    "prim::ListConstruct": lambda *items: (list(items),),
    "prim::TupleConstruct": lambda *items: (tuple(items),),
    "prim::DictConstruct": lambda *items: (_pairs(*items),),
    "prim::ListUnpack": lambda items: tuple(items),
    "prim::TupleUnpack": lambda items: tuple(items),
    "prim::unchecked_cast": lambda item: (item,),
    "prim::Uninitialized": lambda: (None,),
    "prim::RaiseException": _raise,
    "prim::Print": lambda *_: (),
}
"""What builds and takes apart, by kind of node: inputs to outputs."""


def _length(items: Any) -> Any:
    return items.shape[0] if isinstance(items, Tensor) else len(items)


def _size(tensor: Tensor, axis: int | None = None) -> Any:
    return list(tensor.shape) if axis is None else tensor.shape[axis]


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _slice(items: Any, start: int | None = None, stop: int | None = None, step: int = 1) -> Any:
    return items[start:stop:step]


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


_READS: Mapping[str, Callable[..., Any]] = {
    "aten::size": _size,
    "aten::dim": lambda tensor: tensor.dim(),
    "aten::numel": lambda tensor: tensor.numel(),
    "aten::len": _length,
    "aten::Int": _item,
    "aten::Float": _item,
    "aten::Bool": _item,
    "aten::ScalarImplicit": _item,
    "aten::IntImplicit": _item,
    "aten::FloatImplicit": _item,
    "prim::NumToTensor": lambda number: number,
    "prim::dtype": lambda tensor: tensor.dtype,
    "prim::device": lambda tensor: tensor.device,
    "prim::layout": lambda tensor: tensor.layout,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::append": _append,
    "aten::list": list,
    "aten::__contains__": operator.contains,
    "aten::format": lambda template, *values: template.format(*values),
    "aten::warn": lambda *_: None,
    "prim::TupleIndex": operator.getitem,
}
"""Ops that are no arithmetic; what they are given may be tensors."""

_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "aten::add": lambda a, b, alpha=1: a + (b if alpha == 1 else alpha * b),
    "aten::sub": lambda a, b, alpha=1: a - alpha * b,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::pow": operator.pow,
    "aten::neg": operator.neg,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": lambda a, b: a and b,
    "aten::__or__": lambda a, b: a or b,
    "aten::__not__": operator.not_,
    "aten::slice": _slice,
    "aten::__getitem__": operator.getitem,
    "prim::min": min,
    "prim::max": max,
}
"""Arithmetic of numbers, strings and lists; with a tensor among its arguments it is an op."""

_PYTHON: Mapping[str, Callable[..., Any]] = {**_READS, **_ARITHMETIC}
_ALWAYS = frozenset(_READS.values())
