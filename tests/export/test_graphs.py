"""Batches that are taken as they are: graphs with any number of nodes and edges."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from torch import nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.export.onnx_file import export_onnx
from surgeon.export.stripped import Stripped
from tests.export.graphs import GraphTask, Messages, graphs


def export(path: Path, model: nn.Module) -> dict[str, Any]:
    twin = copy.deepcopy(model).double()
    return export_onnx(path, Stripped(model, copy.deepcopy(model), twin, GraphTask(), parse_group("O3")))


def test_nodes_edges_and_graphs_have_any_number(tmp_path: Path) -> None:
    model = Messages()
    record = export(tmp_path / "model.onnx", model)
    assert record["inputs"] == ["features", "positions", "edge_index", "batch", "ptr"]
    assert record["outputs"] == ["vectors", "energy"]
    assert len(set(record["sizes"])) == 3
    assert record["deviation"] <= 1
    assert max(record["equivariance"].values()) <= 1
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for counts in ([1], [2], [1, 1], [9, 4, 1, 1, 3, 8]):  # the first has no edge at all
        batch = graphs(counts)
        found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        for array, tensor in zip(found, model(batch).values(), strict=True):
            np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-4, atol=1e-5)
