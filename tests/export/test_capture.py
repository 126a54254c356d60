"""``int`` and ``len`` that leave sizes what they are, and modules that are hashed by their tensors."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from surgeon.export.capture import captured, open_axes, packages_of, symbolic_sizes
from surgeon.export.sample import sample_of
from surgeon.support.trees import tensors_in
from tests.export.failing import RowsTask

SAMPLE = sample_of(RowsTask(), torch.float32)
SOURCE = """
import torch
own = lambda value: isinstance(value, int)
whole = lambda value: int(value)
count = lambda value: len(value)
"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a package of its own."""
    module = ModuleType("a_library.part")
    exec(SOURCE, module.__dict__)
    monkeypatch.setitem(sys.modules, "a_library.part", module)
    return module


def test_numbers_stay_numbers_and_all_is_put_back(library: ModuleType) -> None:
    before = set(vars(library))
    with symbolic_sizes({"a_library.other", "torch"}):
        assert set(vars(library)) - before == {"int", "len"}
        assert library.whole("7") == 7
        assert type(library.whole(2.5)) is int
        assert library.own(3)
        assert not library.own("3")
        assert library.count([1, 2]) == 2
        assert library.count(torch.zeros(4, 2)) == 4
        assert vars(torch)["int"] is torch.int32
    assert set(vars(library)) == before


def test_a_name_of_the_librarys_own_is_left_alone(library: ModuleType) -> None:
    library.int = str  # type: ignore[attr-defined]
    with symbolic_sizes({"a_library"}):
        assert library.whole(7) == "7"
    assert vars(library)["int"] is str


class Counted(nn.Module):
    """Turns a size into a plain number, and is hashed by its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([2.0]))

    def __hash__(self) -> int:
        return int(self.scale.sum().item())

    def forward(self, *tensors: Tensor) -> Tensor:
        rows = int(tensors[0].shape[0])
        return tensors[0].reshape(rows * 3, 1).sum(0) * self.scale / len(tensors[0])


def test_sizes_stay_dynamic_through_int_and_len() -> None:
    model = nn.Sequential(Counted()).eval()
    own_hash = vars(Counted)["__hash__"]
    wrapped, shapes = _Unpacked(model), tuple(open_axes(axes) for axes in SAMPLE.dynamic)
    program = captured(wrapped, tuple(tensors_in(SAMPLE.batch)), shapes, packages_of(model))
    assert vars(Counted)["__hash__"] is own_hash
    for rows in (2, 7, 30):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(program.module()(x), model(x))


class _Unpacked(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> Tensor:
        result: Tensor = self.model(*tensors)
        return result
