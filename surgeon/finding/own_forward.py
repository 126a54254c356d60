"""Trace a module's own forward by torch.fx, its children as leaves, and refuse where the trace would lose something.

torch.fx sees neither ``torch.no_grad`` and autocast blocks nor attributes that a forward assigns, computes with buffers
while it traces, and keeps constants as new attributes of the module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from surgeon.errors import first_line
from surgeon.recording.record import unchanged

_FACTORIES: frozenset[Any] = frozenset(
    {
        torch.arange,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.normal,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.randperm,
        torch.tensor,
        torch.zeros,
    }
)
_DEVICES = ("cpu", "cuda")


class NotTraceableError(Exception):
    """The forward cannot be rewritten; the message says why."""


class _OwnForward(fx.Tracer):
    """Trace one module's own code; every child is a call."""

    proxy_buffer_attributes = True  # or what is written to a buffer would be written now, and never again

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace with the present global settings, which must not change inside."""
        self.settings = _global_settings()
        with _RecordedFactories(self):
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Leave every child as a call."""
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Refuse ops inside a block that changes global settings: the block is not part of a graph."""
        if _global_settings() != self.settings:
            raise NotTraceableError("its forward switches gradients or autocast, which torch.fx does not see")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        """Keep a constant in the graph, instead of as a new attribute of the module."""
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            return self.create_node("call_function", _constant(a), (), {})
        return super().create_arg(a)


class _RecordedFactories(TorchFunctionMode):
    """Let the graph make its constants anew at every run, as eager does: random ones above all."""

    def __init__(self, tracer: fx.Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            return self.tracer.create_proxy("call_function", func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _constant(value: Tensor) -> Callable[[], Tensor]:
    def constant() -> Tensor:
        return value

    return constant


def _global_settings() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in _DEVICES)
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


@contextmanager
def _settings(gradients: bool, autocast: bool) -> Iterator[None]:
    # The flags themselves: torch.autocast("cuda") warns and does nothing where there is no such device.
    before = {device: torch.is_autocast_enabled(device) for device in _DEVICES}
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, autocast)
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        for device, enabled in before.items():
            torch.set_autocast_enabled(device, enabled)


def trace_own_forward(owner: nn.Module) -> fx.Graph:
    """Return the graph of the forward of a module's class; the module is as it was afterwards.

    It is traced under opposite global settings, since a block that enables gradients shows only where they are off.

    Raises:
        NotTraceableError: if torch.fx cannot trace it, or the trace would lose something.
    """
    kinds = {parameter.kind for parameter in inspect.signature(owner.forward).parameters.values()}
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY} <= kinds:
        raise NotTraceableError("its forward takes *args and keyword-only arguments, which torch.fx confuses")
    graphs = []
    for gradients, autocast in ((True, False), (False, True)):
        with unchanged(owner), _nothing_assigned(owner), _settings(gradients, autocast):
            try:
                graphs.append(_OwnForward().trace(owner))
            except NotTraceableError:
                raise
            except Exception as error:  # the forward is foreign code
                what = f"torch.fx cannot trace the forward of {type(owner).__name__} ({first_line(error)})"
                raise NotTraceableError(what) from error
    if str(graphs[0]) != str(graphs[1]):
        raise NotTraceableError("its forward asks whether gradients or autocast are enabled, which torch.fx fixes")
    for node in graphs[0].nodes:
        if node.op == "placeholder" and str(node.target).startswith("**") and node.users:
            raise NotTraceableError(f"its forward reads {node.target}, which a branch cannot address")
        node.type = None  # annotations do nothing at run time and may name what only the class's file imports
    return graphs[0]


@contextmanager
def _nothing_assigned(owner: nn.Module) -> Iterator[None]:
    """Refuse a forward that assigns to attributes, or fills lists or dicts: a graph would not; and undo it."""
    before = {module: dict(vars(module)) for module in owner.modules()}
    values = [value for kept in before.values() for value in kept.values()]
    contents = [(value, value.copy()) for value in values if type(value) in (list, dict)]
    filled = False
    try:
        yield
    finally:
        for value, copied in contents:
            if not _same_items(value, copied):
                filled = True
                value.clear()
                value.extend(copied) if isinstance(value, list) else value.update(copied)
    changed = [name for module, kept in before.items() for name in _rebound(kept, vars(module))]
    if changed or filled:
        what = f"assigns self.{changed[0]}" if changed else "fills a list or dict of the module"
        raise NotTraceableError(f"its forward {what}, which a traced forward would not")


def _rebound(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    new = [name for name in now if name not in before]
    return new + [name for name, value in before.items() if name not in now or now[name] is not value]


def _same_items(value: Any, copied: Any) -> bool:
    if len(value) != len(copied):
        return False
    if isinstance(value, list):
        return all(left is right for left, right in zip(value, copied, strict=True))
    return all(key in value and value[key] is copied[key] for key in copied)
