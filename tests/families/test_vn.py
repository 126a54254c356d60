"""Vector neurons from a published file to a published file, with the ready task on HDF5 files."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import ShapeError, TaskError
from surgeon.files.reading import open_checkpoint
from surgeon.opening.tasks import load_task
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from surgeon_adapters.zoo.vector_neurons.classes import Classes
from surgeon_adapters.zoo.vector_neurons.parts import ShapeParts
from tests.commands import QUICK, Surgeon
from tests.families.vn_files import CLASSES, inputs, network, shapes, trained, write_checkpoint, write_clouds

pytest.importorskip("h5py", reason="h5py is not installed: make test")

SMALL = {"batch_size": 10, "metric": "cross_entropy"}


class TestContract(AdapterContract):
    """With part segmentation; the other networks are examined with the example."""

    adapter = "surgeon_adapters.zoo.vector_neurons.adapter:adapter"
    libraries = ("h5py",)
    kind = "dgcnn_partseg"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def sample(self) -> Model:
        module = network(self.kind, neighbours=4).double()
        points = shapes().sample_clouds(4, 12, 0.02, False, (2, 0)).points
        return Model(
            module,
            inputs(self.kind, points),
            Symmetry(parse_group("SO3"), lambda g, x, *rest: (g @ x, *rest) if rest else g @ x, lambda g, y: y),
        )

    def data(self) -> Path:
        return write_clouds(self.folder / "clouds.h5", count=20, points=12, parts=self.kind.endswith("partseg"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_from_file_to_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surgeon, kind = Surgeon(work, capsys), "pointnet"
    write_checkpoint(work / "best_model.pth", trained(kind), prefix="module.")
    write_clouds(work / "clouds.h5", points=48)
    task = ("--task", "vn:clouds.h5", "--task-args", json.dumps(SMALL))
    surgeon("relax", "best_model.pth", "--group", "SO3", *task, "--strip-mode", "fold", "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "3e-3", "-o", "run")
    report = surgeon("export", "run", "--container", *QUICK, "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    assert {"accuracy", "cross_entropy"} <= set(report["metrics"]["stripped"])
    # the negative twin: while the branches act, the same check sees them; how far vectors that are nearly 0 magnify
    # float64's rounding when they are normalised depends on the weights
    broken = next(iter(report["equivariance"]["relaxed, theta 1"].values()))["identity"]["median"]
    assert broken > 1e-5
    assert report["equivariance"]["stripped"]["float64"]["identity"]["maximum"] < 1e-5 * broken
    surgeon("verify", "clean", "--against", "best_model.pth", *task)
    _require_equal_predictions(work, kind)


def _require_equal_predictions(work: Path, kind: str) -> None:
    """Open the container as the authors' scripts do, into a fresh network; compare with the clean weights."""
    content = torch.load(work / "clean" / "best_model.pth", weights_only=False)
    assert (content["epoch"], content["instance_acc"]) == (7, np.float64(0.5))
    assert content["optimizer_state_dict"]["param_groups"][0]["momentum"] == 0.9
    fresh, points = network(kind, base=6), shapes().sample_clouds(4, 48, 0.02, False, (3, 0)).points.float()
    with torch.no_grad():
        before = fresh(*inputs(kind, points))
        fresh.load_state_dict(
            {key.removeprefix("module."): value for key, value in content["model_state_dict"].items()}
        )
        after = fresh(*inputs(kind, points))
        fresh.load_state_dict(dict(open_checkpoint(work / "clean" / "model.safetensors").tensors))
        assert torch.equal(fresh(*inputs(kind, points)), after)
    assert not torch.equal(before, after)


# The task


@functools.cache
def some(kind: str) -> nn.Module:
    """A network that tests only look at."""
    return network(kind)


def bound(path: Path, kind: str, **arguments: Any) -> Any:
    spec = f"vn:{path}"
    return load_task(spec, {**SMALL, **arguments}).for_model(some(kind)).task


def test_clouds_are_read_as_the_published_code_reads_them(tmp_path: Path) -> None:
    import h5py

    path = write_clouds(tmp_path / "clouds.h5", points=48)
    task = bound(path, "pointnet", points=32)
    assert isinstance(task, Classes)
    found = torch.cat([task.clouds[split].points for split in ("train", "validation", "test")])
    assert found.shape == (40, 3, 32)
    with h5py.File(path) as file:
        first = torch.as_tensor(file["data"][:, :32]).double()
        labels = torch.as_tensor(file["label"][:, 0]).long()
    first = first - first.mean(1, keepdim=True)
    first = first / first.norm(dim=-1).amax(-1)[:, None, None]
    expected = sorted(zip(labels.tolist(), first.transpose(1, 2).float().flatten(1).tolist(), strict=True))
    everything = torch.cat([task.clouds[split].labels for split in ("train", "validation", "test")])
    read = sorted(zip(everything.tolist(), found.flatten(1).tolist(), strict=True))
    assert [label for label, _ in read] == [label for label, _ in expected]
    torch.testing.assert_close(torch.tensor([row for _, row in read]), torch.tensor([row for _, row in expected]))


def test_a_list_names_files_beside_it(tmp_path: Path) -> None:
    for index in range(2):
        write_clouds(tmp_path / f"ply_data_train{index}.h5", seed=index)
    names = [f"data/modelnet40_ply_hdf5_2048/ply_data_train{index}.h5\n" for index in range(2)]
    listed = tmp_path / "train_files.txt"
    listed.write_text("".join(names))
    test = write_clouds(tmp_path / "ply_data_test0.h5", count=10, seed=2)
    task = bound(listed, "pointnet", test=str(test))
    assert {split: len(clouds) for split, clouds in task.clouds.items()} == {"train": 72, "validation": 8, "test": 10}


def test_batches_are_ordered_and_turned_by_the_seed(tmp_path: Path) -> None:
    path = write_clouds(tmp_path / "clouds.h5")

    def rows(task: Any, split: str, seed: int) -> Any:
        return torch.cat([batch["points"] for batch in task.batches(split, seed)])

    plain, turned, upright = (bound(path, "dgcnn", turn=turn) for turn in ("none", "so3", "z"))
    assert len(plain.batches("train", 0)) == len(list(plain.batches("train", 0))) == 4
    assert torch.equal(rows(plain, "train", 0), rows(plain, "train", 0))
    assert not torch.equal(rows(plain, "train", 0), rows(plain, "train", 1))
    for task, kept in ((turned, False), (upright, True)):
        assert torch.equal(rows(task, "validation", 0), rows(plain, "validation", 1))
        first, second = rows(task, "train", 0), rows(plain, "train", 0)
        assert not torch.allclose(first, second)
        torch.testing.assert_close(first.norm(dim=1), second.norm(dim=1))
        assert torch.allclose(first[:, 2], second[:, 2]) is kept
    odd = bound(path, "dgcnn", batch_size=31)  # 32 training clouds: the last would be alone
    assert [len(batch["labels"]) for batch in odd.batches("train", 0)] == [31]
    assert len(odd.batches("train", 0)) == 1


def test_metrics_of_parts(tmp_path: Path) -> None:
    task = bound(write_clouds(tmp_path / "clouds.h5", points=48, parts=True), "dgcnn_partseg")
    assert isinstance(task, ShapeParts)
    assert task.known == {0: (0, 1), 1: (2, 3)}
    batch = next(iter(task.batches("validation", 0)))
    right = torch.nn.functional.one_hot(batch["parts"], 4).double()
    count = float(len(right))
    found = task.metrics(100 * right, batch)
    assert found["iou"] == (count, count)
    assert found["accuracy"] == (count * 48, count * 48)
    # answers among other categories' parts are not taken: only the order within the own one counts
    other = right.clone()
    other[batch["categories"][:, 0] == 1, :, 2:] = 50
    other[batch["categories"][:, 1] == 1, :, :2] = 50
    assert task.metrics(other, batch)["iou"] == (count, count)
    # everything one part: its share of the points, and nothing of the other part
    one = torch.zeros_like(right)
    one[..., 0] = one[..., 2] = 1
    share = (batch["parts"] % 2 == 0).double().mean(-1)
    assert task.metrics(one, batch)["iou"][0] == pytest.approx(float((share / 2).sum()))


def test_action(tmp_path: Path) -> None:
    task = bound(write_clouds(tmp_path / "clouds.h5"), "pointnet")
    batch = next(iter(task.batches("test", 0)))
    g = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(task.act(g, batch)["points"][:, 0], -batch["points"][:, 1])
    assert torch.equal(task.act(g, batch)["labels"], batch["labels"])
    with pytest.raises(ShapeError, match=r"\(3, 3\), got \(4, 4\)"):
        task.act(torch.eye(4), batch)


def test_unusable_data_and_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    path = write_clouds(tmp_path / "clouds.h5")
    parts = write_clouds(tmp_path / "parts.h5", parts=True)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["points"] = torch.ones(2, 3).numpy()
    (tmp_path / "damaged.h5").write_bytes(path.read_bytes()[:100])
    (tmp_path / "list.txt").write_text("folder/clouds_1.h5\n")
    (tmp_path / "mixed.txt").write_text("clouds.h5\nparts.h5\n")
    few = write_clouds(tmp_path / "few.h5", count=3)
    cases: list[tuple[Path, str, dict[str, Any], str]] = [
        (tmp_path / "other.h5", "pointnet", {}, r"data \(m, n, 3\).* got points \(2, 3\)"),
        (tmp_path / "damaged.h5", "pointnet", {}, "could not read .*damaged.h5"),
        (tmp_path / "list.txt", "pointnet", {}, "clouds_1.h5 is missing: its folder holds clouds.h5"),
        (tmp_path / "mixed.txt", "pointnet", {}, "all or none of the files"),
        (few, "pointnet", {}, "at least two training clouds .* got 3"),
        (path, "pointnet", {"points": 30}, "at least 30 points, got 24"),
        (path, "dgcnn_partseg", {}, "at least 40 points, as many as the model's neighbours, got 24"),
        (path, "pointnet", {"fraction": 0.7}, "0 < fraction < 0.5"),
        (path, "pointnet", {"turn": "x"}, "none, z, so3, got 'x'"),
        (path, "pointnet", {"colour": 1}, "colour"),
        (path, "pointnet", {"metric": "iou"}, "accuracy or cross_entropy, got 'iou'"),
        (parts, "pointnet_partseg", {}, "as many as the model's neighbours"),
    ]
    for file, kind, arguments, message in cases:
        with pytest.raises(TaskError, match=message):
            bound(file, kind, **arguments)
    with pytest.raises(TaskError, match="`pid` beside data and label for a VNDGCNNPartSeg of width 6"):
        load_task(f"vn:{path}").for_model(network("dgcnn_partseg", neighbours=4))
    many = write_clouds(tmp_path / "many.h5")
    with h5py.File(many, "r+") as file:
        file["label"][0] = CLASSES
    with pytest.raises(TaskError, match="each class of the data of .* from 0 to 9 .* got 0 to 10"):
        bound(many, "pointnet")
    with pytest.raises(TaskError, match="has not seen its model"):
        load_task(f"vn:{path}").task.batches("train", 0)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        TaskError, match=r"needs h5py, which is not installed: pip install 'equisurgeon\[pointclouds\]'"
    ):
        bound(path, "pointnet")
