"""The ops on raw parameters inside a module's forward, followed while it runs, where no trace of it can be had.

Torch hands every call inside the forward to a mode. It follows what is made of parameters and constants alone by the
identity of tensors, and meets the contractions of that with anything else, numbered by their first parameter.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from surgeon.finding.ops import Change
from surgeon.finding.own_forward import NotTraceableError
from surgeon.finding.raw_ops import CONTRACTION_METHODS, CONTRACTIONS, RawOp, eager_complaint, multiplied
from surgeon.recording.record import memory_of, plain_tensors
from surgeon.support.transforms import is_mapped, outside
from surgeon.support.trees import fresh_copy, map_tensors

_FUNCTIONS = CONTRACTIONS | {getattr(Tensor, name) for name in CONTRACTION_METHODS if hasattr(Tensor, name)}


@dataclass(frozen=True)
class Met:
    """A contraction of activations with what parameters make, as a forward runs into it.

    Attributes:
        parameters: names of the parameters that make its other operands; first those that are multiplied.
        number: how many contractions with the first of them ran before.
        operands: the activations that are multiplied, by their position among the tensors of the call.
        result: what it made of them.
    """

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    parameters: tuple[str, ...]
    number: int
    operands: Mapping[int, Tensor]
    result: Tensor

    @property
    def ops(self) -> list[RawOp]:
        """What a plan calls it, ``parameter@number:operand``, one entry per activation."""
        return [RawOp(f"{self.parameters[0]}@{self.number}", operand, self.parameters) for operand in self.operands]

    def on(self, operand: int, x: Tensor) -> Tensor:
        """Return its result with one of the activations replaced, and everything else as it was met."""
        old = self.operands[operand]
        args, kwargs = (_replaced(each, old, x) for each in (tuple(self.args), dict(self.kwargs)))
        result = self.function(*args, **kwargs)
        assert isinstance(result, Tensor)
        return result


Meet = Callable[[Met], Tensor]
"""Given a contraction, returns what the forward goes on with."""


class _Watch(TorchFunctionMode):
    """Follow what parameters make through one run of a module's forward."""

    def __init__(self, owner: nn.Module, meet: Meet) -> None:
        super().__init__()
        self.meet = meet
        self.met: Counter[str] = Counter()
        self.made: dict[int, tuple[Tensor, tuple[str, ...]]] = {}  # the tensor itself, so that its identity stays its
        for name, parameter in owner.named_parameters(remove_duplicate=False):
            self.made.setdefault(id(parameter), (parameter, (name,)))
        for value in (*vars(owner).values(), list(owner.buffers())):
            for tensor in plain_tensors(value):
                self.made.setdefault(id(tensor), (tensor, ()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = _tensors(args, kwargs.values())
        if operands and self.made.keys().isdisjoint(operands):  # most calls: activations alone
            return result
        names = tuple(dict.fromkeys(name for key in operands if key in self.made for name in self.made[key][1]))
        made = operands.keys() <= self.made.keys()
        if made:
            self.made.update((id(tensor), (tensor, names)) for tensor in plain_tensors(result))
        elif names and _contracts(func, kwargs):
            result = self._meet(func, args, kwargs, operands, result)
        if operands and _writes(func, kwargs):
            out = kwargs.get("out")
            target = out if isinstance(out, Tensor) else next(iter(operands.values()))
            self._written(target, names if made else None)
        return result

    def _meet(self, func: Any, args: Any, kwargs: Any, operands: Mapping[int, Tensor], result: Any) -> Any:
        positional, named = multiplied(_name(func), args, kwargs)
        factors = _tensors(positional, named.values())
        active = {i: t for i, (key, t) in enumerate(operands.items()) if key in factors and key not in self.made}
        weights = [name for key in factors if key in self.made for name in self.made[key][1]]
        if not weights or not active:
            return result
        added = [name for key in operands if key in self.made for name in self.made[key][1]]
        self.met[weights[0]] += 1
        names = tuple(dict.fromkeys([*weights, *added]))
        return self.meet(Met(func, args, kwargs, names, self.met[weights[0]] - 1, active, result))

    def _written(self, target: Tensor, names: tuple[str, ...] | None) -> None:
        """Note a write: what activations (no names) were written to is one, and so is all that shares its memory."""
        if names is not None:
            self.made[id(target)] = (target, names)
        elif id(target) in self.made:
            for key in [key for key, (each, _) in self.made.items() if memory_of(each) == memory_of(target)]:
                del self.made[key]


def _name(func: Any) -> str:
    return str(getattr(getattr(func, "overloadpacket", func), "__name__", ""))


def _contracts(func: Any, kwargs: Mapping[str, Any]) -> bool:
    return getattr(func, "overloadpacket", func) in _FUNCTIONS and kwargs.get("out") is None


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    name = _name(func)
    in_place = name.endswith("_") if not name.endswith("__") else name.startswith(("__set", "__i"))
    return in_place or kwargs.get("out") is not None


def _tensors(*values: Iterable[Any]) -> dict[int, Tensor]:
    """Return the tensors among arguments and in lists of them, by identity, in their order."""
    found: dict[int, Tensor] = {}
    for value in values:
        for each in value:
            if isinstance(each, Tensor):
                found[id(each)] = each
            elif isinstance(each, (list, tuple)):
                found |= _tensors(each)
    return found


def _replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(each, old, new) for each in value)
    if isinstance(value, dict):
        return {key: _replaced(each, old, new) for key, each in value.items()}
    return new if value is old else value


def run_watched(owner: nn.Module, meet: Meet, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run the forward of a module's class, which goes on with what ``meet`` makes of its contractions."""
    with _Watch(owner, meet):
        return type(owner).forward(owner, *args, **kwargs)


def run_changed(
    owner: nn.Module, changes: Mapping[str, Sequence[Change]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run the forward of a module's class with changed results.

    Args:
        changes: place of an op to what is done to its result, one after the other.
    """

    def meet(met: Met) -> Tensor:
        result = met.result
        for op in met.ops:
            for change in changes.get(op.place, ()):
                result = change(met.operands[op.operand], result)
        return result

    return run_watched(owner, meet, args, kwargs)


def is_watched(node: str) -> bool:
    """Tell whether a plan names an op that is met in a running forward, not one of a trace."""
    return "@" in node


def watch_complaint(owner: nn.Module, calls: Sequence[Mapping[str, Any]]) -> str:
    """Return why a module's forward cannot be followed on some calls, in training and in eval mode; empty if it can.

    Args:
        owner: the module; its buffers are restored.
        calls: arguments by name.
    """
    met: list[list[RawOp]] = []

    def meet(each: Met) -> Tensor:
        met[-1].extend(each.ops)
        return each.result

    def run(call: Mapping[str, Any]) -> Any:
        met.append([])
        return _call(owner, call, meet)

    complaint = eager_complaint(owner, calls, run, "its forward under a mode of torch")
    if not complaint and any(ops != met[0] for ops in met):
        return "which contractions its parameters take part in depends on the input or on the mode"
    return complaint


def ops_met(owner: nn.Module, call: Mapping[str, Any]) -> list[RawOp]:
    """Return the ops that a module's own code runs in a call, those of its children left out.

    Left out, too, are those where gradients are off, that see one of many rows (under vmap), or that are computed once
    more in the backward pass, when nothing follows the forward.

    Raises:
        NotTraceableError: if they all run under vmap.
    """
    around, found, mapped, inside = _surroundings(), list[RawOp](), list[RawOp](), [0]

    def enter(*_: Any) -> None:
        inside[0] += 1

    def leave(*_: Any) -> None:
        inside[0] -= 1

    def meet(met: Met) -> Tensor:
        if not inside[0] and _surroundings() == around:
            (mapped if is_mapped() else found).extend(met.ops)
        return met.result

    hooks = (
        module_hooks.register_module_forward_pre_hook(enter),
        module_hooks.register_module_forward_hook(leave, always_call=True),
    )
    try:
        _call(owner, call, meet)
    finally:
        for hook in hooks:
            hook.remove()
    if mapped and not found:
        raise NotTraceableError("its forward multiplies by its parameters under vmap, where it sees one row at a time")
    return found


def _surroundings() -> tuple[Any, ...]:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # of checkpointing, which runs a part again
    return torch.is_grad_enabled(), hooks


def _call(owner: nn.Module, call: Mapping[str, Any], meet: Meet) -> Any:
    bound = inspect.BoundArguments(inspect.signature(owner.forward), dict(call))
    return run_watched(owner, meet, bound.args, bound.kwargs)


def met_in(owner: nn.Module, op: RawOp, call: Mapping[str, Any]) -> Met:
    """Return an op as it is met in a call, with copies of activations and result.

    Raises:
        NotTraceableError: if the forward does not run into it.
    """
    found: list[Met] = []

    def meet(met: Met) -> Tensor:
        if any(each.place == op.place for each in met.ops):
            copies = {id(tensor): outside(tensor).detach().clone() for tensor in met.operands.values()}
            operands = {index: copies[id(tensor)] for index, tensor in met.operands.items()}
            args, kwargs = met.args, met.kwargs
            for tensor in met.operands.values():
                args, kwargs = (_replaced(each, tensor, copies[id(tensor)]) for each in (args, kwargs))
            result = outside(met.result).detach().clone()
            found.append(dataclasses.replace(met, args=args, kwargs=kwargs, operands=operands, result=result))
        return met.result

    with torch.enable_grad():  # it may differentiate
        _call(owner, map_tensors(fresh_copy, call), meet)
    if not found:
        raise NotTraceableError("whether its forward runs into this op depends on the input")
    return found[0]


@contextmanager
def changing_met(owner: nn.Module, op: RawOp, change: Change) -> Iterator[None]:
    """While the context is open, a module's forward goes on with ``change(x, y)`` in place of an op's result y."""
    if not isinstance(vars(owner).get("forward"), _ChangedForward):
        owner.forward = _ChangedForward(owner)
    forward: Any = owner.forward
    forward.changes.setdefault(op.place, []).append(change)
    try:
        yield
    finally:
        forward.changes[op.place].remove(change)
        if not any(forward.changes.values()):
            del owner.forward


class _ChangedForward:
    """What runs instead of a module's forward while some of its ops are changed."""

    def __init__(self, owner: nn.Module) -> None:
        self.__signature__ = inspect.signature(owner.forward)
        self.owner = owner
        self.changes: dict[str, list[Change]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the class."""
        return run_changed(self.owner, self.changes, args, kwargs)
