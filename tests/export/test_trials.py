"""Axes that have one size in all batches: tried at others, left free where the export holds, else said to be fixed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.export.onnx_file import export_onnx
from surgeon.export.sample import sample_for, sample_of
from surgeon.export.stripped import Stripped
from surgeon.export.trials import resized
from tests.export.graphs import GraphTask, Messages, graphs


class Pooled(nn.Module):
    """Point clouds of shape (b, 3, n) to vectors; the kinds differ in what they make of n."""

    def __init__(self, kind: str = "any") -> None:
        super().__init__()
        self.kind = kind
        self.mix = nn.Linear(12, 12) if kind == "fixed" else nn.Identity()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, points: Tensor) -> Tensor:
        factor = float(str(points.shape[2])) if self.kind == "counted" else 1.0
        mean: Tensor = self.mix(points).mean(2)
        return factor * self.weight * mean


class Clouds:
    """All of twelve points."""

    def __init__(self, axes: Any = None) -> None:
        if axes is not None:
            self.dynamic_axes = axes

    def batches(self, split: str, seed: int) -> list[Tensor]:
        return [torch.randn(8, 3, 12, generator=torch.Generator().manual_seed(seed))]

    def loss(self, outputs: Tensor, batch: Tensor) -> Tensor:
        return outputs.square().mean()

    def act(self, g: Tensor, batch: Tensor) -> Tensor:
        return torch.einsum("ij,bjn->bin", g.to(batch), batch)

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs @ g.to(outputs).T


def beside(model: nn.Module, task: Any) -> Stripped:
    return Stripped(model, copy.deepcopy(model), copy.deepcopy(model).double(), task, parse_group("O3"))


def test_points_that_are_always_as_many_are_left_free(tmp_path: Path) -> None:
    model = Pooled()
    record = export_onnx(tmp_path / "model.onnx", beside(model, Clouds()))
    assert record["axes"] == {"input_0": "float32 (input_0_0, 3, input_0_2)", "output": "float32 (input_0_0, 3)"}
    assert record["one_size"]["free"]
    assert "axis 2 of input_0 (12)" in record["one_size"]["told"]
    points = torch.randn(5, 3, 77)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"input_0": points.numpy()})
    np.testing.assert_allclose(found, model(points).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_an_axis_that_only_the_export_fixes_is_told(tmp_path: Path) -> None:
    record = export_onnx(tmp_path / "model.onnx", beside(Pooled("counted"), Clouds()))
    assert record["axes"]["input_0"] == "float32 (input_0_0, 3, 12)"
    assert not record["one_size"]["free"]
    assert "axis 2 of input_0 (12); fixed in the file, since otherwise Pooled cannot be" in record["one_size"]["told"]


def test_what_the_model_fixes_stays_fixed() -> None:
    sample = sample_for(beside(Pooled("fixed"), Clouds()))
    assert sample.dynamic == ((0,),)
    assert sample.tried == ((),)


@pytest.mark.parametrize(("named", "tried"), [([0], (2,)), ([0, 2], ()), ([2], ())])
def test_what_the_task_does_not_name_is_tried_and_what_it_names_is_compared(named: Any, tried: Any) -> None:
    sample = sample_for(beside(Pooled(), Clouds({"input_0": named})))
    assert sample.dynamic == ((0, 2),)
    assert sample.tried == (tried,)
    assert len({batch.shape[2] for batch in sample.others}) == 4


class Around(Pooled):
    """Adds each point's successor, the first one's to the last."""

    def forward(self, points: Tensor) -> Tensor:
        after = (torch.arange(points.shape[2]) + 1) % points.shape[2]
        return self.weight * (points + points[:, :, after]).square().sum(1)


def test_remainders_by_a_free_size_are_computed_in_the_file(tmp_path: Path) -> None:
    task: Any = Clouds()
    task.act_output = lambda g, outputs: outputs
    model = Around()
    record = export_onnx(tmp_path / "model.onnx", beside(model, task))
    assert record["one_size"]["free"], record["one_size"]
    points = torch.randn(2, 3, 5)
    (found,) = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"input_0": points.numpy()})
    np.testing.assert_allclose(found, model(points).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_graphs_of_one_size_are_cut_with_all_that_points_at_them() -> None:
    task = GraphTask([(4, 3, 5)] * 3)
    with pytest.raises(TaskError, match="batches of different sizes"):
        sample_of(task, torch.float32)
    sample = sample_for(beside(Messages(), task))
    assert sample.tried == sample.dynamic == ((0,), (0,), (1,), (0,), (0,))
    assert sample.without_tried() is None
    for batch in sample.others:
        assert int(batch["edge_index"].max()) < len(batch["positions"]) == len(batch["features"]) == len(batch["batch"])


def test_cutting_graphs_gives_the_first_of_them() -> None:
    whole = graphs((4, 3, 5, 2))
    found = resized(list(whole.values()), 4, torch.arange(2))
    for name, tensor, other in zip(whole, found, graphs((4, 3)).values(), strict=True):
        expected = whole[name][: len(other)] if other.is_floating_point() else other
        assert torch.equal(tensor, expected), name
