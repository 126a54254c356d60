"""A batch that is an object with attributes, ``to`` and ``clone``, as of graph libraries, is an input like others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.editing.insert import relax
from surgeon.editing.strip import strip
from surgeon.finding.find import find
from surgeon.support.trees import to_dtype
from tests.nets import o3


class Graphs:
    """Several graphs in one: tensors as attributes, and beside them what is none."""

    def __init__(self, **tensors: Any) -> None:
        self.__dict__.update(tensors)
        self.names = ["one", "two"]

    def clone(self) -> Graphs:
        return self.mapped(Tensor.clone)

    def to(self, device: Any) -> Graphs:
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Graphs:
        result = copy.copy(self)
        tensors = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        result.__dict__.update(tensors)
        return result


class Layer(nn.Module):
    """Is given the whole batch and returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = o3.Linear("2x0e+2x1o", "2x0e+2x1o")

    def forward(self, graphs: Graphs) -> Graphs:
        result, x = graphs.clone(), self.linear(graphs.x)  # type: ignore[attr-defined]
        result.x = torch.cat([torch.tanh(x[:, :2]), x[:, 2:] * torch.tanh(x[:, :1])], dim=1)  # type: ignore[attr-defined]
        return result


class Net(nn.Module):
    """Sums over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.readout = Layer(), o3.Linear("2x0e+2x1o", "1x1o")

    def forward(self, graphs: Any) -> Tensor:
        rows: Tensor = self.readout(self.layer(graphs).x)
        return rows.new_zeros(len(graphs.names), 3).index_add(0, graphs.batch, rows)


def graphs(rows: int = 7) -> Graphs:
    return Graphs(x=torch.randn(rows, 8), batch=torch.tensor([0] * 3 + [1] * (rows - 3)))


def act(g: Tensor, batch: Any) -> Graphs:
    moved, matrix = batch.clone(), g.to(batch.x)
    vectors = (batch.x[:, 2:].reshape(-1, 2, 3) @ matrix.T).reshape(-1, 6)
    moved.x = torch.cat([batch.x[:, :2], vectors], dim=1)
    return moved


def test_it_is_cast_recorded_and_acted_upon() -> None:
    net, batch = Net().double(), to_dtype(graphs(), torch.float64)
    assert (batch.x.dtype, batch.batch.dtype, batch.names) == (torch.float64, torch.int64, ["one", "two"])
    before, kept = batch.x.clone(), net(batch)
    found = [
        find(net, "O3", batch, act=act, act_output=lambda g, y: y @ g.T.to(y), adapters=adapters)
        for adapters in (None, {})
    ]
    for plan in found:
        assert [site.name for site in plan.sites] == ["layer.linear", "readout"]
        assert all(site.verified for site in plan.sites)
    relaxation = relax(net, found[0], dense=True, init_scale=1.0)
    relaxation.set_theta(1.0)
    assert not torch.allclose(net(batch), kept)
    strip(net, "drop")
    assert torch.equal(net(batch), kept)
    assert torch.equal(batch.x, before)
