"""Decomposing a program node by node gives what torch's own decomposition gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.export.decompose import decompose

ATEN = torch.ops.aten
OPS = (ATEN.tensordot.default, ATEN.broadcast_tensors.default, ATEN.index_copy.default, ATEN.index_add.default)


class _Apart(nn.Module):
    """Writes into parts of a new tensor, as generated code of e3nn does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.tensordot(x, self.weight, dims=([1], [0]))
        out = x.new_zeros(x.shape[0], 4)
        out.narrow(1, 0, 2).copy_(mixed)
        out.narrow(1, 2, 1).copy_(x.narrow(1, 0, 1))
        first, _ = torch.broadcast_tensors(out, x[:, :1])
        rows = torch.arange(2, dtype=torch.int32).to(torch.int64)
        first = torch.zeros_like(first).index_add_(0, rows, first[:2]) + (2 * first).mul_(first)
        return first.index_add(0, rows, first[:2]).index_copy(0, rows, first[1:3])


class _Seen(_Apart):
    """Takes a part that is written to afterwards, and is looked at only then."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 4)
        early = out.narrow(1, 1, 2)
        out.narrow(1, 0, 2).copy_(x.narrow(1, 0, 2))
        return torch.tensordot(early, self.weight.T, dims=([1], [0]))


class _Twice(_Apart):
    """Writes once more into what a first write gave away."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        first = out.add_(x)
        out.mul_(2)
        return torch.tensordot(first, self.weight, dims=([1], [0]))


class _Whole(_Apart):
    """Writes into what is no part of a new tensor."""

    def forward(self, x: Tensor) -> Tensor:
        out = (2 * x).flatten()
        out.narrow(0, 0, 2).copy_(self.weight[0])
        return torch.tensordot(out.view_as(x), self.weight, dims=([1], [0]))


@pytest.mark.parametrize(("kind", "own"), [(_Apart, True), (_Seen, False), (_Twice, False), (_Whole, False)])
def test_the_same_function(kind: type[nn.Module], own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what only torch's own decomposition treats, it does that."""
    model, asked = kind().eval(), []
    program = torch.export.export(model, (torch.randn(7, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    real: Any = type(program).run_decompositions
    monkeypatch.setattr(type(program), "run_decompositions", lambda *given: asked.append(0) or real(*given))
    known = {**torch._decomp.decomposition_table, **dict(torch.export.default_decompositions().items())}
    table = {op: known[op] for op in OPS}
    result = decompose(program, table)
    targets = {node.target for node in result.graph.nodes}
    assert not targets & {*OPS, ATEN.copy_.default, ATEN.mul_.Tensor, ATEN.index_add_.default, ATEN.to.dtype}
    assert bool(asked) is not own
    x = torch.randn(5, 3)
    torch.testing.assert_close(result.module()(x), model(x))
