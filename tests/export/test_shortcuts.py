"""What the ONNX exporter is spared changes nothing in what it writes."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from surgeon.export.capture import quiet
from surgeon.export.shortcuts import known_once

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class _Mixed(nn.Module):
    """Mixes kinds of numbers, so that arguments and results are converted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor, kinds: Tensor) -> tuple[Tensor, ...]:
        mixed = (x @ self.weight) * kinds[:, None] + 1
        halves = (kinds / 2 + x.double().sum(1)) ** 2
        return mixed, halves, torch.where(kinds > 1, kinds, 0.5), (kinds + x.shape[0]).sum(), kinds.float().mean()


def _exported(program: Any) -> Any:
    with quiet():
        return torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).model


def _text(model: Any) -> list[Any]:
    def plain(attribute: Any) -> Any:
        value = attribute.value
        return value.numpy().tolist() if hasattr(value, "numpy") else str(value)

    return [
        (
            node.op_type,
            [value and value.name for value in node.inputs],
            [(value.name, str(value.dtype), str(value.shape)) for value in node.outputs],
            {name: plain(each) for name, each in node.attributes.items()},
        )
        for node in model.graph
    ]


def test_the_same_graph_with_fewer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_ir.schemas import OpSignature

    runs: list[Any] = []
    own = fx.Interpreter.run_node
    monkeypatch.setattr(fx.Interpreter, "run_node", lambda self, node: runs.append(node) or own(self, node))
    given = (torch.randn(7, 3), torch.arange(7))
    axes = {0: torch.export.Dim("rows")}
    trace = partial(torch.export.export, _Mixed().eval(), given, dynamic_shapes=(axes, axes))
    before = vars(OpSignature)["from_op_schema"]
    texts, counts = [], []
    for context in (contextlib.nullcontext, known_once):
        program = trace().run_decompositions(torch.export.default_decompositions())
        program.run_decompositions = lambda _, program=program: program
        torch.manual_seed(0)
        runs.clear()
        with context():
            texts.append(_text(_exported(program)))
        counts.append(len(runs))
    assert texts[0] == texts[1]
    assert any(op == "Cast" for op, *_ in texts[0])
    assert 0 < counts[1] < counts[0] / 2
    assert vars(OpSignature)["from_op_schema"] is before


def test_an_exporter_without_these_details_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.fx.passes import type_promotion

    own = type_promotion._TypePromotionInterpreter
    monkeypatch.delattr(own, "_maybe_promote_node")
    before = own.run_node
    with known_once():
        assert own.run_node is before
    monkeypatch.delattr(type_promotion, "_TypePromotionInterpreter")
    with known_once():
        pass
