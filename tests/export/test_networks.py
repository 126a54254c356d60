"""Networks with neighbour searches inside go through ONNX."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.export import export_onnx
from surgeon.groups import parse_group
from surgeon.stripped import Stripped
from surgeon.tasks import load_task

POINTS = Path(__file__).parents[2] / "examples/pointcloud/task.py"


@pytest.mark.slow
@pytest.mark.parametrize("network", ["pointnet", "dgcnn"])
def test_vector_neurons_are_exported_and_equivariant_in_onnx_runtime(network: str, tmp_path: Path) -> None:
    task: Any = load_task(POINTS, {"network": network, "count": 60}).task
    torch.manual_seed(0)
    model = task.model().eval()
    twin, double = copy.deepcopy(model), copy.deepcopy(model).double()
    record = export_onnx(tmp_path / "model.onnx", Stripped(model, twin, double, task, parse_group("SO3")))
    assert record["deviation"] <= 1
    assert record["equivariance"]["identity"] <= 1
    assert record["tensors"] > 50
