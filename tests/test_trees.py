"""Nested data keeps its structure and classes, and is never modified in place."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from surgeon.trees import allclose, equal, first_tensor, map_tensors, tensors_in, to_device, to_dtype


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


def test_dtype_changes_floating_tensors_only() -> None:
    tree = {"x": torch.ones(2), "i": torch.ones(2, dtype=torch.long), "c": torch.ones(2, dtype=torch.cfloat)}
    result = to_dtype(tree, torch.float64)
    assert [tensor.dtype for tensor in result.values()] == [torch.float64, torch.long, torch.complex64]


@pytest.mark.parametrize("make", [*CONTAINERS, OnlyTo])
def test_device_moves_every_tensor_of_a_copy(make: Any) -> None:
    tree = make(torch.ones(3))
    moved = to_device(tree, "meta")
    assert type(moved) is type(tree)
    assert {tensor.device.type for tensor in tensors_in(moved)} == {"meta"}
    assert {tensor.device.type for tensor in tensors_in(tree)} == {"cpu"}


def test_first_tensor() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    assert first_tensor(["s", {"a": (None, x)}, y]) is x
    assert first_tensor({"a": [1, "s"]}) is None


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
    assert not allclose(left, right)
    assert equal(left, left)
    assert allclose(right, right)


def test_allclose_has_a_tolerance_and_equal_has_none() -> None:
    left, right = {"x": torch.ones(2)}, {"x": torch.ones(2) + 1e-6}
    assert allclose(left, right, relative=1e-5)
    assert not allclose(left, right, relative=1e-7, absolute=0.0)
    assert not equal(left, right)


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
