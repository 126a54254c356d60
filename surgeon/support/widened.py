"""Weights in float64 that take no memory of their own: another model holds their numbers, and reading widens them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._pytree import tree_map_only

from surgeon.support.trees import in_dtype

LARGE = 2**16
"""Numbers of a weight from which on widening takes longer than dispatching it: smaller ones are copied."""

_ATEN = torch.ops.aten
_ALIASES = (_ATEN.detach.default, _ATEN.alias.default)
_COPIES = (_ATEN.clone.default, _ATEN._unsafe_view.default)
"""Copies that need not be made before they are read; autograd keeps many of them."""

_FILLS = (_ATEN.uniform_.default, _ATEN.normal_.default, _ATEN.zero_.default)

View = Callable[[Tensor], Tensor]


@dataclass
class _Held:
    """Numbers, and how they are kept.

    Attributes:
        stored: in any floating dtype.
        made: by which the numbers are made of these.
        lent: whether what is stored is somebody else's, too, so that the first write has to copy it.
        short: to which what is written is rounded, as long as a network gets its first random weights.
    """

    stored: Tensor
    made: tuple[View, ...] = ()
    lent: bool = True
    short: torch.dtype | None = None

    @property
    def numbers(self) -> Tensor:
        """What is stored, and made of it."""
        return _along(self.made, self.stored)

    def own(self) -> None:
        """Make the numbers nobody else's, and float64."""
        if self.lent or self.stored.dtype != torch.float64:
            self.stored, self.made, self.lent = self.numbers.to(torch.float64, copy=True), (), False


class Widened(Tensor):
    """A tensor of float64 that is read from shorter numbers, at every use anew, and is written to like any other.

    Views of it, and ``detach``, share what it holds; a deep copy and ``copy_`` from another one share its numbers until
    one of the two is written to.

    Args:
        held: its numbers.
        way: the views that lead from them to this tensor.
    """

    _held: _Held
    _way: tuple[View, ...]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: _Held, way: tuple[View, ...] = ()) -> Self:
        """Make one; its shape follows."""
        seen = _along(way, held.numbers)
        made = Tensor._make_wrapper_subclass(
            cls, seen.shape, strides=seen.stride(), dtype=torch.float64, device=seen.device
        )
        made._held, made._way = held, way
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        if func in _ALIASES:
            return cls(args[0]._held, args[0]._way)
        if func.is_view and args and isinstance(args[0], cls) and func is not _ATEN.view.dtype:
            return args[0]._viewed(lambda numbers: func(numbers, *args[1:], **kwargs))
        if func in _COPIES:
            return args[0]._copied(lambda numbers: func(numbers, *args[1:], **kwargs))
        written = [each for each in _written(func, args, kwargs) if isinstance(each, cls)]
        if not written:
            return func(*tree_map_only(cls, cls.numbers, args), **tree_map_only(cls, cls.numbers, kwargs))
        if func is _ATEN.copy_.default and written[0]._takes(args[1]):
            return args[0]
        if func in _FILLS and written[0]._filled(func, args[1:], kwargs):
            return args[0]
        for each in written:
            each._held.own()
        own = {id(each): _along(each._way, each._held.stored) for each in written}
        args, kwargs = tree_map_only(cls, lambda each: own.get(id(each), each.numbers()), (args, kwargs))
        func(*args, **kwargs)
        for each in written:
            each._held.stored = each._held.stored.to(each._held.short or torch.float64)
        return written[0] if func._schema.returns else None

    def numbers(self) -> Tensor:
        """Return its numbers in float64; those that are held so are not copied."""
        return _along(self._way, self._held.numbers).double()

    def numpy(self, *, force: bool = False) -> Any:
        """Return its numbers as an array, to be read."""
        return self.numbers().detach().numpy(force=force)

    def tolist(self) -> Any:
        """Return its numbers as a nest of lists."""
        return self.numbers().tolist()

    def data_ptr(self) -> int:
        """Return where the numbers begin that it is read from; of a copy, where those of its source do."""
        stored = self._held.stored
        return (stored if self._held.made else _along(self._way, stored)).data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return where these numbers are."""
        return self._held.stored.untyped_storage()

    def element_size(self) -> int:
        """Return how many bytes each of them takes there."""
        return self._held.stored.element_size()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        held = memo.setdefault(id(self._held), self._shared())
        copied: Tensor = type(self)(held, self._way)
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    def _shared(self) -> _Held:
        """Return the same numbers, of which a write on either side makes others."""
        self._held.lent = True
        return _Held(self._held.stored, self._held.made)

    def _copied(self, copy: View) -> Widened:
        """Return a copy that is made when it is read."""
        held = self._shared()
        held.made += (*self._way, copy)
        return Widened(held)

    def _viewed(self, view: Callable[[Tensor], Any]) -> Any:
        found = view(_along(self._way, self._held.numbers))
        if isinstance(found, Tensor):
            return type(self)(self._held, (*self._way, view))
        parts = (_part(view, number) for number in range(len(found)))
        return [type(self)(self._held, (*self._way, part)) for part in parts]

    def _filled(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Fill a whole tensor with random numbers or zeros, which are made once more when they are read.

        So a network that is built only to be given other weights holds none until then.
        """
        generator = kwargs.get("generator") or torch.default_generator
        if self._way or not self._held.short or generator.device != self.device:
            return False
        state = generator.get_state()

        def fill(numbers: Tensor) -> Tensor:
            again = {} if func is _ATEN.zero_.default else {"generator": torch.Generator().set_state(state)}
            filled: Tensor = func(torch.empty(numbers.shape, dtype=torch.float64), *args, **again)
            return filled

        held = _Held(torch.empty((), dtype=torch.float64).expand(self.shape), (fill,), short=self._held.short)
        vars(self._held).update(vars(held))
        func(self._held.stored.new_empty(self.shape), *args, **kwargs)  # for whoever draws after it
        return True

    def _takes(self, source: Any) -> bool:
        """Share the numbers of another whole one, if it is that."""
        if not isinstance(source, Widened) or source._way or self._way or source.shape != self.shape:
            return False
        vars(self._held).update(vars(source._shared()))
        return True


def _part(view: Callable[[Tensor], Any], number: int) -> View:
    """Return the view that is one of several that an op makes."""
    return lambda numbers: view(numbers)[number]


def _along(way: Sequence[View], numbers: Tensor) -> Tensor:
    for view in way:
        numbers = view(numbers)
    return numbers


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the arguments that an op writes to.

    Raises:
        NotImplementedError: if it also changes their shape or memory.
    """
    if not func._schema.is_mutable:
        return
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"{func} of weights whose numbers are another model's")
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from given if isinstance(given, list | tuple) else [given]


def in_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 if it is of a floating dtype; a large one is read from it and must not change."""
    if tensor.is_complex():
        return in_dtype(tensor, torch.float64)
    if not tensor.is_floating_point() or isinstance(tensor, Widened):
        return tensor
    return Widened(_Held(tensor.detach())) if tensor.numel() >= LARGE else tensor.double()


def values_of(tensor: Tensor) -> Tensor:
    """Return what :func:`set_values` puts back; of a whole widened tensor nothing is copied."""
    if not isinstance(tensor, Widened):
        return tensor.detach().clone()
    return tensor._shared().numbers


@torch.no_grad()
def set_values(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor other values, in place; a whole widened one holds them rounded to the dtype of what it holds."""
    if isinstance(tensor, Widened):
        vars(tensor._held).update(vars(_Held(values.detach().to(tensor._held.stored.dtype))))
    else:
        tensor.copy_(values)


@contextmanager
def weights_held_as(dtype: torch.dtype) -> Iterator[None]:
    """Hold the large float64 weights of the modules that are made while the context is open in a shorter dtype."""

    def register(module: nn.Module, name: str, parameter: Any) -> Any:
        if type(parameter) is not nn.Parameter or parameter.dtype != torch.float64 or parameter.numel() < LARGE:
            return None
        weight = Widened(_Held(parameter.detach().to(dtype), short=dtype))
        return nn.Parameter(weight if parameter.any() else weight.zero_(), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        handle.remove()
