"""Vector neurons by their files: the published keys and shapes, and networks recognised by them alone."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError, ModelNotFoundError
from surgeon.files.reading import open_checkpoint
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon_adapters.zoo.vector_neurons.adapter import adapter
from surgeon_adapters.zoo.vector_neurons.models import ModelSettings, build, built_from, recognised
from tests.families.vn_files import SIZES, inputs, network, write_checkpoint
from tests.families.vn_published import PUBLISHED

POOLINGS = ("mean", "max")
OUTPUTS = {"pointnet": 40, "dgcnn": 40, "pointnet_partseg": 50, "dgcnn_partseg": 50}


def shapes_of(tensors: dict[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in tensors.items()]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_names_shapes_and_order(kind: str, pooling: str) -> None:
    """By default; and the published state dict, as shapes alone, is recognised as that network."""
    expected = PUBLISHED[kind](pooling)
    with torch.device("meta"):
        model = build(kind, OUTPUTS[kind], pooling=pooling)
        tensors = {name: torch.empty(shape) for name, shape in expected.items()}
    assert shapes_of(model.state_dict()) == list(expected.items())
    categories = 16 if kind.endswith("partseg") else None
    assert recognised(tensors) == ModelSettings(kind, OUTPUTS[kind], 64, pooling, categories)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("base", [3, 7, 12])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_sizes_are_read_off_the_shapes(kind: str, base: int, pooling: str) -> None:
    with torch.device("meta"):
        model = build(kind, base=base, pooling=pooling, neighbours=5, **SIZES[kind])
    found, built = recognised(model.state_dict()), built_from(model)
    assert found is not None
    assert built is not None
    assert {**asdict(found), "neighbours": 5} == asdict(built)
    assert built.base == base
    assert built.pooling == pooling
    assert (built.outputs, built.categories) == (SIZES[kind]["outputs"], SIZES[kind].get("categories"))


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_container_opens_by_itself(tmp_path: Path, kind: str, prefix: str) -> None:
    """Its accuracies are NumPy numbers, which are read without running code."""
    model = network(kind, base=12)
    path = write_checkpoint(tmp_path / "best_model.pth", model, prefix)
    workspace = open_path(path)
    assert workspace.model is not model
    assert type(workspace.model) is type(model)
    points = torch.randn(4, 3, 48)
    with torch.no_grad():
        given = inputs(kind, points)
        assert torch.equal(workspace.model.eval()(*given), model(*given))
        assert not torch.equal(model(*inputs(kind, points.flip(1))), model(*given))
    assert open_checkpoint(path).extras["class_acc"] == 0.25


def test_inference_of_parts_is_per_point_and_depends_on_the_category() -> None:
    for kind in ("pointnet_partseg", "dgcnn_partseg"):
        model = network(kind).double()
        points = torch.randn(2, 3, 48, dtype=torch.float64)
        order = torch.randperm(48)
        categories = torch.eye(2, dtype=torch.float64)
        with torch.no_grad():
            logits = model(points, categories)
            assert logits.shape == (2, 48, SIZES[kind]["outputs"])
            assert relative_difference(model(points[..., order], categories), logits[:, order]) < 1e-9
            assert relative_difference(model(points, categories.flip(0)), logits) > 1e-6
            turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
            turn = turn * torch.det(turn)
            assert relative_difference(model(turn @ points, categories), logits) < 1e-9
            shear = torch.eye(3, dtype=torch.float64) + 0.5 * torch.eye(3, dtype=torch.float64).roll(1, 0)
            assert relative_difference(model(shear @ points, categories), logits) > 1e-5


def test_variants_are_named_and_left_to_the_user(tmp_path: Path) -> None:
    state = network("pointnet").state_dict()
    changed = {
        "it has more head.weight": {**state, "head.weight": torch.ones(2)},
        "it lacks feat.bn3.bn.bias": {key: value for key, value in state.items() if key != "feat.bn3.bn.bias"},
        "of another shape feat.std_feature.vn_lin.weight": {
            **state,
            "feat.std_feature.vn_lin.weight": torch.ones(2, 16),
        },
        "VNPointNet of width 0": {**state, "fc1.weight": torch.ones(5, 192)},
    }
    for message, tensors in changed.items():
        assert adapter.rebuild(tensors) is None
        assert re.search(message, adapter.recognise(tensors) or "")
        torch.save(tensors, tmp_path / "variant.pt")
        with pytest.raises(ModelNotFoundError, match="VNPointNet of width .* pooling and 10 classes, but .*--model"):
            open_path(tmp_path / "variant.pt")
    # a task beside the file, which is asked later, still builds the user's own variant
    (tmp_path / "task.py").write_text(
        "from surgeon_adapters.zoo.vector_neurons.models import build\n\n\nclass Task:\n    def model(self):\n"
        "        model = build('pointnet', 10, base=6)\n"
        "        model.fc1.weight = __import__('torch').nn.Parameter(__import__('torch').ones(5, 192))\n"
        "        return model\n\n"
        "    def batches(self, split, seed):\n        return []\n\n    def loss(self, outputs, batch):\n"
        "        return outputs\n\n\ntask = Task()\n"
    )
    assert len(list(open_path(tmp_path / "variant.pt", OpenOptions(trust_task=True)).model.state_dict())) == len(
        tensors
    )


def test_other_state_dicts_are_not_taken() -> None:
    assert adapter.rebuild({"conv1.weight": torch.ones(3, 3), "fc3.weight": torch.ones(2, 2)}) is None
    assert built_from(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "transformer", "outputs": 3}, "a kind among pointnet, dgcnn, .* got 'transformer'"),
        ({"kind": "dgcnn", "outputs": 3, "pooling": "median"}, "mean or max, got 'median'"),
        ({"kind": "dgcnn", "outputs": 3, "base": 2}, "at least 3 and at least one output, got 2 and 3"),
    ],
)
def test_unusable_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(**arguments)  # type: ignore[arg-type]
