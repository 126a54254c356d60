"""Nested data: batches and outputs as trees of dicts, lists, tuples, dataclasses and plain objects with tensors."""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import ShapeError

Place = tuple[str | int, ...]
"""The way to a tensor inside nested data: keys, indices and attribute names."""

REAL_PAIRS = "re_im"
"""Ends the way to a complex tensor that is taken for one of real numbers, with an axis of two, (re, im), at its end."""

TensorFunction = Callable[[Tensor], Tensor]

_LEAVES = (str, bytes, type, enum.Enum, nn.Module, types.ModuleType, types.FunctionType, types.MethodType)


def _is_graph_like(tree: Any) -> bool:
    """Tell whether an object maps its own tensors, as the batches of graph libraries do with ``apply``."""
    return callable(getattr(tree, "to", None)) and callable(getattr(tree, "apply", None))


def map_tensors(function: TensorFunction, tree: Any) -> Any:
    """Return a copy of ``tree`` in which every tensor t is ``function(t)``; everything else is kept.

    Dicts, lists, tuples, named tuples, dataclasses and objects with attributes keep their class; nothing is modified
    in place. An object with both ``to`` and ``apply`` is copied and maps its own tensors. Modules are left alone.

    Args:
        function: applied to each tensor, any shape.

    Returns:
        The same structure.

    Example:
        >>> map_tensors(lambda t: t + 1, {"x": torch.zeros(2), "name": "water"})
        {'x': tensor([1., 1.]), 'name': 'water'}
    """
    return _Mapper(function).map(tree)


class _Mapper:
    """One walk over a tree; ``move``, if given, is used for objects that have ``to`` and nothing else to map by."""

    def __init__(self, function: TensorFunction, move: Callable[[Any], Any] | None = None) -> None:
        self.function = function
        self.move = move
        self.done: dict[int, Any] = {}

    def map(self, tree: Any) -> Any:
        """Return the mapped copy of one node."""
        if isinstance(tree, Tensor):
            return self.function(tree)
        if type(tree) is dict:  # as most are: whether something is a Mapping takes longer
            return {key: self.map(value) for key, value in tree.items()}
        if isinstance(tree, _LEAVES):
            return tree
        if isinstance(tree, Mapping):
            return _rebuilt(tree, {key: self.map(value) for key, value in tree.items()})
        if isinstance(tree, list | tuple):
            return _rebuilt(tree, dict(enumerate(map(self.map, tree))))
        if _is_graph_like(tree):
            return copy.copy(tree).apply(self.function)
        if self.move is not None and callable(getattr(tree, "to", None)):
            return self.move(copy.copy(tree))
        return self._map_object(tree)

    def _map_object(self, tree: Any) -> Any:
        if id(tree) in self.done:
            return self.done[id(tree)]
        self.done[id(tree)] = tree  # for an object that refers to itself
        attributes = _attributes(tree)
        mapped = {name: self.map(value) for name, value in attributes.items()}
        if any(mapped[name] is not value for name, value in attributes.items()):
            self.done[id(tree)] = _rebuilt(tree, mapped)
        return self.done[id(tree)]


def _rebuilt(tree: Any, changed: Mapping[Any, Any]) -> Any:
    """Return a copy of a node with other values of some of its parts."""
    if isinstance(tree, MutableMapping):
        result = copy.copy(tree)
        if not isinstance(tree, dict) and not hasattr(tree, "__copy__"):  # it may keep its items in dicts of its own
            for name, value in vars(result).items():
                if isinstance(value, MutableMapping):
                    setattr(result, name, copy.copy(value))
        result.update(changed)
        return result
    if isinstance(tree, Mapping):
        return {**tree, **changed}
    if isinstance(tree, list | tuple):
        items = [changed.get(index, item) for index, item in enumerate(tree)]
        return items if isinstance(tree, list) else _like(tree, items)
    result = copy.copy(tree)
    for name, value in changed.items():
        try:
            setattr(result, name, value)  # the batches of graph libraries keep their tensors elsewhere than others do
        except AttributeError:  # a frozen dataclass
            object.__setattr__(result, name, value)
    return result


def _like(tree: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    if type(tree) is tuple:
        return tuple(items)
    if all(new is old for new, old in zip(items, tree, strict=True)):
        return tree
    make = getattr(type(tree), "_make", type(tree))
    result: tuple[Any, ...] = make(items)
    return result


def _attributes(tree: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {item.name: getattr(tree, item.name) for item in dataclasses.fields(tree) if hasattr(tree, item.name)}
    attributes = getattr(tree, "__dict__", None)
    return dict(attributes) if isinstance(attributes, dict) else {}


def fresh_copy(tensor: Tensor) -> Tensor:
    """Return a copy that a run may change in place without the user's tensor noticing."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """Return ``tree`` with every tensor on ``device``; objects that have only ``to`` are moved by it."""
    return _Mapper(lambda tensor: tensor.to(device), lambda item: item.to(device)).map(tree)


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a floating tensor in ``dtype``, a complex one in that of two such numbers if there is one; else itself."""
    if tensor.is_complex() and dtype in (torch.float32, torch.float64):
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def to_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """Return ``tree`` with every floating or complex tensor in ``dtype``; indices and masks are kept."""
    return map_tensors(lambda tensor: in_dtype(tensor, dtype), tree)


def as_pairs(tensor: Tensor) -> Tensor:
    """Return a complex tensor as real numbers with an axis (re, im) at its end, any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def as_numbers(pairs: Tensor) -> Tensor:
    """Return the complex tensor of which these are real and imaginary parts, in their layout if that can be."""
    *steps, last = pairs.stride()
    whole = last == 1 and not any(step % 2 for step in (*steps, pairs.storage_offset()))
    return torch.view_as_complex(pairs if whole else pairs.contiguous())


def _path_key(key: Any) -> Any:
    """Return what stands for a key in a path: ``a__near__b`` for ``("a", "near", "b")``, a type of edges."""
    return "__".join(key) if isinstance(key, tuple) and all(isinstance(part, str) for part in key) else key


def _by_path_key(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    named = {_path_key(key): value for key, value in tree.items()}
    return named if len(named) == len(tree) else dict(tree)


def _children(tree: Any) -> dict[Any, Any]:
    """Return the parts of a node by key; a leaf has none."""
    if isinstance(tree, (Tensor, *_LEAVES)):
        return {}
    if isinstance(tree, Mapping):
        return _by_path_key(tree)
    if _is_graph_like(tree) and callable(getattr(tree, "to_dict", None)):
        return _by_path_key(tree.to_dict())
    if isinstance(tree, list | tuple):
        return dict(enumerate(tree))
    return _attributes(tree)


def _tensors(tree: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
        return
    if not isinstance(tree, Mapping | list | tuple):
        if id(tree) in seen:  # an object that refers to itself
            return
        seen.add(id(tree))
    for child in _children(tree).values():
        yield from _tensors(child, seen)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors of ``tree`` in order, depth first."""
    return list(_tensors(tree, set()))


def tensor_leaves(tree: Any) -> dict[Place, Tensor]:
    """Return the tensors of ``tree`` by their paths, in order.

    A key that is a tuple of strings, such as a type of edges, is joined by two underscores; keys other than these,
    strings and numbers are left out.

    Example:
        >>> list(tensor_leaves({"1": torch.zeros(2), "more": [torch.ones(1)]}))
        [('1',), ('more', 0)]
    """
    found: dict[Place, Tensor] = {}
    _collect(tree, (), found, frozenset())
    return found


def _collect(tree: Any, path: Place, into: dict[Place, Tensor], above: frozenset[int]) -> None:
    if isinstance(tree, Tensor):
        into[path] = tree
    elif id(tree) not in above:
        for key, child in _children(tree).items():
            if isinstance(key, str | int) and not isinstance(key, bool):
                _collect(child, (*path, key), into, above | {id(tree)})


def real_leaves(tree: Any) -> dict[Place, Tensor]:
    """Return the floating dense tensors of ``tree`` by their paths, complex ones as pairs of real numbers."""
    pairs = {
        (*path, REAL_PAIRS) if leaf.is_complex() else path: as_pairs(leaf)
        for path, leaf in tensor_leaves(tree).items()
        if leaf.layout == torch.strided
    }
    return {path: leaf for path, leaf in pairs.items() if leaf.is_floating_point()}


def plain_place(path: Place) -> Place:
    """Return the way to a tensor, whatever it is taken for."""
    return path[:-1] if path[-1:] == (REAL_PAIRS,) else path


def tensor_at(tree: Any, path: Place) -> Tensor:
    """Return the tensor at ``path``.

    Raises:
        ShapeError: if there is none.
    """
    if plain_place(path) != path:
        return as_pairs(tensor_at(tree, plain_place(path)))
    for depth, key in enumerate(path):
        tree = _child(tree, key, path[:depth])
    if not isinstance(tree, Tensor):
        raise ShapeError(
            f"expected a tensor at {list(path)}, got {type(tree).__name__}: the plan was made for other data"
        )
    return tree


def _child(tree: Any, key: str | int, above: Place) -> Any:
    children = _children(tree)
    if key not in children:
        raise ShapeError(
            f"expected {key!r} at {list(above)} of {type(tree).__name__}, which holds "
            f"{', '.join(map(repr, children)) or 'nothing'}: the plan was made for other data"
        )
    return children[key]


def with_tensor(tree: Any, path: Place, tensor: Tensor) -> Any:
    """Return a copy of ``tree`` in which the tensor at ``path`` is ``tensor``; nothing is modified in place.

    Raises:
        ShapeError: if ``tree`` has nothing at ``path``.
    """
    if plain_place(path) != path:
        return _replaced(tree, plain_place(path), 0, as_numbers(tensor))
    return _replaced(tree, path, 0, tensor)


def _replaced(tree: Any, path: Place, depth: int, tensor: Tensor) -> Any:
    if depth == len(path):
        return tensor
    key: Any = path[depth]
    if len(path) > depth + 1 and _is_graph_like(tree) and not isinstance(tree, Mapping | list | tuple):
        return _replaced_in_stores(tree, path[depth:], tensor)
    value = _replaced(_child(tree, key, path[:depth]), path, depth + 1, tensor)
    if isinstance(tree, Mapping) and key not in tree:
        key = next(own for own in tree if _path_key(own) == key)
    return _rebuilt(tree, {key: value})


def _replaced_in_stores(tree: Any, path: Place, tensor: Tensor) -> Any:
    """Replace a tensor in an object that maps its own tensors, and whose stores cannot be set as attributes."""
    wanted = tensor_at(tree, path)
    if sum(found is wanted for found in tensors_in(tree)) == 1:
        return copy.copy(tree).apply(lambda found: tensor if found is wanted else found)
    marks: list[tuple[Tensor, Tensor]] = []  # one for each place that one tensor is at

    def mark(original: Tensor) -> Tensor:
        marks.append((original.detach(), original))
        return marks[-1][0]

    result = copy.copy(tree).apply(mark)
    chosen = tensor_at(result, path)
    originals = {id(marked): tensor if marked is chosen else original for marked, original in marks}
    return result.apply(lambda marked: originals[id(marked)])


def _compare(left: Any, right: Any, seen: frozenset[int]) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        both = isinstance(left, Tensor) and isinstance(right, Tensor)
        return both and left.dtype == right.dtype and torch.equal(left.to_dense(), right.to_dense())
    parts, others = _children(left), _children(right)
    if not parts and not others:
        return _equal_leaves(left, right)
    if type(left) is not type(right) or parts.keys() != others.keys():
        return False
    if id(left) in seen:
        return True
    return all(_compare(parts[key], others[key], seen | {id(left)}) for key in parts)


def _equal_leaves(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if type(left) is not type(right) or getattr(left, "shape", None) != getattr(right, "shape", None):
        return False
    if isinstance(left, _LEAVES):
        return bool(left == right)
    if "__eq__" not in {name for base in type(left).__mro__[:-1] for name in vars(base)}:
        return True  # two empty objects of one class
    verdict = left == right
    return bool(verdict.all() if hasattr(verdict, "all") else verdict)  # arrays compare by element


def equal(left: Any, right: Any) -> bool:
    """Tell whether two trees have the same structure, equal leaves, and equal tensors in shape, dtype and value."""
    return _compare(left, right, frozenset())
