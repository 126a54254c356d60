"""Nested data keeps its structure and classes, and is never modified in place."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from surgeon.errors import ShapeError
from surgeon.support.trees import (
    equal,
    map_tensors,
    tensor_at,
    tensor_leaves,
    tensors_in,
    to_device,
    to_dtype,
    with_tensor,
)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    name: str = "n"


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any


class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x
        self.note = "kept"


class GraphLike:
    """As the batches of graph libraries: ``apply`` works in place and returns self."""

    def __init__(self, pos: Tensor) -> None:
        self._store = {"pos": pos}

    def __copy__(self) -> GraphLike:
        return GraphLike(self._store["pos"])

    def apply(self, function: Any) -> GraphLike:
        self._store = {key: function(value) for key, value in self._store.items()}
        return self

    def to(self, device: Any) -> GraphLike:
        return self.apply(lambda tensor: tensor.to(device))

    def to_dict(self) -> dict[str, Tensor]:
        return dict(self._store)


class OnlyTo:
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: Any) -> OnlyTo:
        self.x = self.x.to(device)
        return self


class LibraryGraph(GraphLike):
    """Attributes live in a store, as in the batches of graph libraries."""

    def __init__(self, pos: Tensor) -> None:
        self.__dict__["_store"] = {"pos": pos}

    def __copy__(self) -> LibraryGraph:
        return LibraryGraph(self._store["pos"])

    def __getattr__(self, name: str) -> Any:
        return self.__dict__["_store"][name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_store":
            self.__dict__["_store"] = value
        else:
            self._store[name] = value


class StoresByKind:
    """Stores of several kinds, which are no attributes and cannot be set as such."""

    def __init__(self, **stores: dict[str, Tensor]) -> None:
        self.__dict__["_stores"] = stores

    def __copy__(self) -> StoresByKind:
        return StoresByKind(**self._stores)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is a kind")

    def apply(self, function: Any) -> StoresByKind:
        mapped = {kind: {key: function(x) for key, x in store.items()} for kind, store in self._stores.items()}
        self.__dict__["_stores"] = mapped
        return self

    def to(self, device: Any) -> StoresByKind:
        return self.apply(lambda tensor: tensor.to(device))

    def to_dict(self) -> dict[str, dict[str, Tensor]]:
        return dict(self._stores)


class OwnMapping(MutableMapping[str, Any]):
    """A mapping that is no dict and does not say how it is copied."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._items[key] = value

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


CONTAINERS: list[Any] = [
    lambda x: {"a": x, "b": 3},
    lambda x: OrderedDict(a=x),
    lambda x: [x, "s"],
    lambda x: (x, None),
    lambda x: Pair(x, 1),
    lambda x: Frozen(x),
    lambda x: Slotted(x),
    lambda x: Plain(x),
    lambda x: GraphLike(x),
    lambda x: LibraryGraph(x),
    lambda x: StoresByKind(atom={"x": x, "y": x}, site={"x": x}),
    lambda x: UserDict(a=x),
    lambda x: OwnMapping(a=x, b=2),
    lambda x: {"deep": [Pair(Frozen(x), {"y": Plain([x])})]},
]


@pytest.mark.parametrize("make", CONTAINERS)
def test_every_tensor_is_mapped_the_class_kept_and_the_original_untouched(make: Any) -> None:
    x = torch.ones(3)
    tree = make(x)
    mapped = map_tensors(lambda t: t + 1, tree)
    assert type(mapped) is type(tree)
    assert len(tensors_in(tree)) == len(tensors_in(mapped)) >= 1
    assert all(torch.equal(t, torch.full((3,), 2.0)) for t in tensors_in(mapped))
    assert all(t is x for t in tensors_in(tree))
    assert equal(map_tensors(lambda t: t - 1, mapped), tree)
    assert not equal(mapped, tree)


def test_what_is_no_tensor_is_kept() -> None:
    model, array, size = nn.Linear(2, 2), np.ones(3), torch.ones(2, 3).shape
    tree = {"m": model, "a": array, "s": size, "f": len, "t": Tensor, "n": None}
    mapped = map_tensors(lambda t: t + 1, tree)
    assert mapped is not tree
    assert all(mapped[key] is tree[key] for key in tree)


def test_an_object_that_refers_to_itself_does_not_hang() -> None:
    tree = Plain(torch.ones(2))
    tree.me = tree  # type: ignore[attr-defined]
    assert len(tensors_in(tree)) == 1
    assert torch.equal(map_tensors(lambda t: t * 3, tree).x, torch.full((2,), 3.0))
    assert equal(tree, tree)


def test_dtype_changes_floating_and_complex_tensors_only() -> None:
    tree = {"x": torch.ones(2), "i": torch.ones(2, dtype=torch.long), "c": torch.ones(2, dtype=torch.cfloat)}
    result = to_dtype(tree, torch.float64)
    assert [tensor.dtype for tensor in result.values()] == [torch.float64, torch.long, torch.complex128]


@pytest.mark.parametrize("make", [*CONTAINERS, OnlyTo])
def test_device_moves_every_tensor_of_a_copy(make: Any) -> None:
    tree = make(torch.ones(3))
    moved = to_device(tree, "meta")
    assert type(moved) is type(tree)
    assert {tensor.device.type for tensor in tensors_in(moved)} == {"meta"}
    assert {tensor.device.type for tensor in tensors_in(tree)} == {"cpu"}


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        ([torch.ones(2)], (torch.ones(2),)),
        ([torch.ones(2)], [torch.ones(3)]),
        ([torch.ones(2)], [torch.ones(2).double()]),
        ([torch.ones(2)], [torch.ones(2), 1]),
        (torch.ones(2), 1.0),
        (np.ones(1), np.ones(3)),
        (Frozen(torch.ones(1)), Plain(torch.ones(1))),
        ({"m": nn.Linear(2, 2)}, {"m": nn.Linear(2, 2)}),
    ],
)
def test_unequal_trees(left: Any, right: Any) -> None:
    assert not equal(left, right)
    assert equal(left, left)


def test_equal_has_no_tolerance() -> None:
    assert not equal({"x": torch.ones(2)}, {"x": torch.ones(2) + 1e-6})


trees = st.recursive(
    st.one_of(st.integers(), st.text(), st.builds(lambda n: torch.arange(float(n)), st.integers(0, 4))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Plain, inner),
    ),
    max_leaves=8,
)


@given(trees)
def test_mapping_the_identity_and_a_bijection_gives_an_equal_tree(tree: Any) -> None:
    assert equal(map_tensors(Tensor.clone, tree), tree)
    assert equal(map_tensors(lambda t: -t, map_tensors(lambda t: -t, tree)), tree)
    assert equal([tensor + 1 for tensor in tensors_in(tree)], tensors_in(map_tensors(lambda t: t + 1, tree)))


# Paths

PATHS: list[Any] = [
    (lambda x: x, ()),
    (lambda x: {"a": x, "b": x}, ("a",)),
    (lambda x: {0: x, "0": x}, (0,)),
    (lambda x: {"with.dots": {"": x}}, ("with.dots", "")),
    (lambda x: OrderedDict(b=1, a=x), ("a",)),
    (lambda x: defaultdict(list, a=x), ("a",)),
    (lambda x: UserDict(a=x), ("a",)),
    (lambda x: OwnMapping(a=x, b=x), ("b",)),
    (lambda x: [x, x, "s"], (1,)),
    (lambda x: (x, None, x), (2,)),
    (lambda x: Pair(1, x), (1,)),
    (lambda x: Frozen(x), ("x",)),
    (lambda x: Slotted(x), ("x",)),
    (lambda x: Plain(x), ("x",)),
    (lambda x: LibraryGraph(x), ("pos",)),
    (lambda x: StoresByKind(atom={"x": x, "y": x}, site={"x": x}), ("site", "x")),
    (lambda x: {"deep": [Pair(Frozen({"y": Plain((x, x))}), x)]}, ("deep", 0, 0, "x", "y", "x", 1)),
]


@pytest.mark.parametrize(("make", "path"), PATHS)
def test_a_tensor_is_replaced_in_a_copy(make: Any, path: Any) -> None:
    x, new = torch.ones(3), torch.zeros(2)
    tree = make(x)
    result = with_tensor(tree, path, new)
    assert tensor_at(result, path) is new
    assert type(result) is (Tensor if not path else type(tree))
    # Everything else is the same, in the same order; the original is as it was.
    before, after = tensor_leaves(tree), tensor_leaves(result)
    assert list(before) == list(after)
    assert path in before
    assert all(leaf is x for leaf in before.values())
    assert [key for key, leaf in after.items() if leaf is not x] == [path]
    assert equal(with_tensor(result, path, x), tree)
    assert not equal(result, tree)


def test_objects_keep_what_else_they_hold() -> None:
    result = with_tensor(Plain(torch.ones(1)), ("x",), torch.zeros(1))
    assert result.note == "kept"
    assert with_tensor(Frozen(torch.ones(1), "name"), ("x",), torch.zeros(1)).name == "name"


def test_a_mapping_that_cannot_change_becomes_a_dict() -> None:
    tree = MappingProxyType({"a": torch.ones(1), "b": 2})
    result = with_tensor(tree, ("a",), torch.zeros(1))
    assert type(result) is dict
    assert (list(result), float(result["a"]), result["b"]) == (["a", "b"], 0.0, 2)
    assert float(tree["a"]) == 1.0


def test_leaves_are_listed_in_order_by_paths_that_survive_json() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    tree = {"b": [x, {"c": y}], 3: Pair(None, x), True: x, (1, 2): y, None: x, "text": "s", "model": nn.Linear(1, 1)}
    assert list(tensor_leaves(tree)) == [("b", 0), ("b", 1, "c"), (3, 1)]
    assert tensor_leaves(x) == {(): x}
    assert tensor_leaves("nothing") == {}


def test_leaves_of_an_object_that_refers_to_itself() -> None:
    tree = Plain(torch.ones(1))
    tree.me = [tree]  # type: ignore[attr-defined]
    assert list(tensor_leaves(tree)) == [("x",)]
    # The same object twice, but not inside itself, has leaves twice.
    assert list(tensor_leaves([Plain(1), tree, tree])) == [(1, "x"), (2, "x")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("b",), "expected 'b' at \\[\\] of dict, which holds 'a', 'n'"),
        (("a", 2), "expected 2 at \\['a'\\] of list, which holds 0, 1"),
        (("a", "0"), "expected '0' at \\['a'\\] of list"),
        (("a", 0, "x"), "expected 'x' at \\['a', 0\\] of Tensor, which holds nothing"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(path: Any, message: str) -> None:
    tree = {"a": [torch.ones(1), 3], "n": 1}
    with pytest.raises(ShapeError, match=message):
        tensor_at(tree, path)
    with pytest.raises(ShapeError, match=message):
        with_tensor(tree, path, torch.zeros(1))
    assert tensor_at(tree, ("a", 0)) is tree["a"][0]


def test_what_is_no_tensor_is_not_taken_for_one() -> None:
    with pytest.raises(ShapeError, match="expected a tensor at \\['a', 1\\], got int"):
        tensor_at({"a": [torch.ones(1), 3]}, ("a", 1))
    with pytest.raises(ShapeError, match="expected a tensor at \\[\\], got list"):
        tensor_at([torch.ones(1)], ())


@given(trees)
def test_every_leaf_is_found_at_its_path_and_can_be_replaced(tree: Any) -> None:
    leaves = tensor_leaves(tree)
    assert [leaf.data_ptr() for leaf in leaves.values()] == [leaf.data_ptr() for leaf in tensors_in(tree)]
    for path, leaf in leaves.items():
        assert tensor_at(tree, path) is leaf
        new = torch.full((2, 2), 7.0)
        assert tensor_at(with_tensor(tree, path, new), path) is new
        assert tensor_at(tree, path) is leaf


def test_a_key_of_several_strings_is_addressed_by_its_joined_name() -> None:
    edges = ("atom", "near", "site")
    tree = {"atom": torch.zeros(2), edges: {"length": torch.ones(3)}}
    path = ("atom__near__site", "length")
    assert list(tensor_leaves(tree)) == [("atom",), path]
    replaced = with_tensor(tree, path, torch.full((3,), 2.0))
    assert replaced.keys() == tree.keys()
    assert torch.equal(replaced[edges]["length"], torch.full((3,), 2.0))
    assert torch.equal(tensor_at(tree, path), torch.ones(3))


def test_keys_that_would_have_one_name_keep_their_own() -> None:
    tree = {"a__b": torch.zeros(2), ("a", "b"): torch.ones(3)}
    assert len(tensors_in(tree)) == 2
    assert torch.equal(with_tensor(tree, ("a__b",), torch.ones(1))["a__b"], torch.ones(1))
