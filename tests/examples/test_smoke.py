"""The smoke example: data files, task, and both shipped networks from their file to a clean file."""

from __future__ import annotations

import doctest
import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes
from surgeon.algebra.representations.tensors import TensorType
from surgeon.errors import TaskError, UsageError
from surgeon_adapters.zoo.relaxed_convolutions.adapter import FRAME, adapter, velocities
from tests.commands import QUICK, Surgeon
from tests.modules import importable

EXAMPLE = Path(__file__).parents[2] / "examples" / "smoke"


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    with importable(EXAMPLE):
        yield


def make_task(**arguments: Any) -> Any:
    return import_module("task").make_task(**arguments)


def published(folder: Path, names: tuple[str, ...] = ("1_0", "2_3"), frames: int = 8) -> Path:
    """Write a folder as the published smoke set has it: one pickled tensor (t, 2, 64, 64) per experiment."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index, name in enumerate(names):
        torch.save(torch.randn(frames + index, 2, 9, 9, generator=generator), folder / f"raw_data_{name}.pt")
    return folder


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(import_module("task")).failed == 0


@pytest.mark.parametrize("variant", ["rotation", "scale"])
def test_shipped_data_are_small_and_move(variant: str) -> None:
    path = EXAMPLE / f"smoke_{variant}.npz"
    sequences = import_module("data").read_sequences(path)
    assert path.stat().st_size < 200_000
    assert sequences.velocity.shape == (len(sequences.names), 9, 2, 25, 25)
    steps = (sequences.velocity[:, 1:] - sequences.velocity[:, :-1]).flatten(2).norm(dim=2)
    assert float(steps.min()) > 0.1


def test_smoke_rises_alike_in_all_directions_but_not_equally_fast() -> None:
    sequences = import_module("data").read_sequences(EXAMPLE / "smoke_rotation.npz")
    move, group = import_module("task").move, parse_group("C4")
    first = dict(zip(sequences.names, sequences.velocity[:, 0], strict=True))
    quarter = move(group.elements[0], first["1_0"][None])[0]
    right, wrong = (float((quarter - first[name]).norm() / quarter.norm()) for name in ("1_1", "1_3"))
    assert 0.05 < right < 0.5 < 1 < wrong


def test_windows_of_the_splits_are_disjoint_and_ordered_in_time() -> None:
    task = make_task(experiments="", batch_size=3)
    windows = task._windows
    assert {split: len(found) for split, found in windows.items()} == {"train": 32, "validation": 8, "test": 16}
    assert max(s for _, s in windows["train"]) < min(s for _, s in windows["validation"])
    assert max(s for _, s in windows["validation"]) < min(s for _, s in windows["test"])
    batches = list(task.batches("train", 0))
    again, other = list(task.batches("train", 0)), list(task.batches("train", 1))
    assert all(torch.equal(a["frames"], b["frames"]) for a, b in zip(batches, again, strict=True))
    assert not all(torch.equal(a["frames"], b["frames"]) for a, b in zip(batches, other, strict=True))


def test_held_out_experiments_are_the_other_domain() -> None:
    task = make_task(held_out=("2_1",), test="domain")
    number = task._sequences.names.index("2_1")
    assert {each for each, _ in task._windows["test"]} == {number}
    assert number not in {each for split in ("train", "validation") for each, _ in task._windows[split]}
    future = make_task(held_out=("2_1",))
    assert number not in {each for windows in future._windows.values() for each, _ in windows}


def test_a_forecast_of_several_steps_feeds_on_itself() -> None:
    task = make_task(steps=2, inputs=2)
    batch = next(task.batches("test", 0))
    model = torch.nn.Conv2d(4, 2, 1, bias=False)
    outputs = task.forward(model, batch)
    assert outputs.shape == batch["target"].shape
    first = model(batch["frames"])
    assert torch.equal(outputs[:, :2], first)
    assert torch.equal(outputs[:, 2:], model(torch.cat([batch["frames"][:, 2:], first], 1)))


@pytest.mark.parametrize(("name", "scales"), [("C4", False), ("SCALE2", True)])
def test_the_task_acts_as_representations_do(name: str, scales: bool) -> None:
    group, task = parse_group(name), make_task()
    batch = next(task.batches("test", 0))
    rho = velocities(group, 4, 1) if scales else axes(group, "c v", {"c": 2})
    expected = TensorType(rho, (-3,), (-2, -1), FRAME)
    for g in group.elements:
        moved = task.act(g, batch)
        assert relative_difference(moved["frames"], expected.act(g, batch["frames"])) < 1e-6
        assert relative_difference(moved["frames"], batch["frames"]) > 0.1
    with pytest.raises(TaskError, match="quarter turns|by a whole number"):
        task.act(group.elements[0] @ torch.linalg.matrix_exp(0.1 * torch.ones_like(group.elements[0])), batch)


def test_a_folder_as_published_is_read(tmp_path: Path) -> None:
    folder = published(tmp_path / "Rotation")
    sequences = import_module("data").read_sequences(folder)
    assert sequences.names == ("1_0", "2_3")
    assert sequences.velocity.shape == (2, 8, 2, 9, 9)
    assert torch.equal(sequences.velocity[1], torch.load(folder / "raw_data_2_3.pt")[:8])
    batch = next(make_task(data=str(folder), batch_size=4).batches("train", 0))
    assert batch["frames"].shape == (4, 4, 9, 9)


def test_bad_data_end_in_one_sentence(tmp_path: Path) -> None:
    read = import_module("data").read_sequences
    folder = published(tmp_path / "Rotation")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "short.npz", names=np.array(["a"]), velocity=np.zeros((1, 9, 3, 5, 5)))
    np.savez(tmp_path / "nan.npz", names=np.array(["a"]), velocity=np.full((1, 9, 2, 5, 5), np.nan))
    for name, words in (
        ("empty", "got none"),
        ("text.npz", "or an npz file"),
        ("none.npz", "or an npz file"),
        ("short.npz", r"\(1, 9, 3, 5, 5\)"),
        ("nan.npz", "finite"),
    ):
        with pytest.raises(TaskError, match=words):
            read(tmp_path / name)
    torch.save({"a": torch.zeros(2)}, folder / "raw_data_3_0.pt")
    with pytest.raises(TaskError, match="got dict"):
        read(folder)
    torch.save(print, folder / "raw_data_3_0.pt")
    with pytest.raises(TaskError, match="could not be read"):
        read(folder)


def test_bad_arguments_end_in_one_sentence() -> None:
    for arguments in ({"variant": "shear"}, {"test": "past"}, {"test": "domain"}, {"steps": 0}):
        with pytest.raises(UsageError, match="expected"):
            make_task(**arguments)
    for arguments in ({"held_out": ("9_9",)}, {"experiments": "9"}, {"steps": 9}):
        with pytest.raises(TaskError, match="expected"):
            next(make_task(**arguments).batches("train", 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "group", "component"), [("rotation", "C4", "rotation"), ("scale", "SCALE2", "shrunk by 2")]
)
def test_from_file_to_file(
    variant: str,
    group: str,
    component: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import load_file

    surgeon = Surgeon(tmp_path, capsys)
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE / f"relaxed_{variant}.safetensors", "net.safetensors")
    task = ("--task", str(EXAMPLE / "task.py"), "--task-args", json.dumps({"variant": variant}))
    inspected = surgeon("inspect", "net.safetensors", "--group", group, *task, "--json").data
    assert "RelaxedConvAdapter" in inspected["found_by"]
    assert len(inspected["plan"]["sites"]) == {"rotation": 3, "scale": 2}[variant]
    surgeon("relax", "net.safetensors", "--group", group, *task, "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "1e-3", "-o", "run")
    report = surgeon("export", "run", "-o", "clean", "--onnx", "--json", *QUICK).data["certificate"]
    assert report["grade"] == "same function"
    assert report["checks"]["as equivariant as the original"]
    errors = {name: report["equivariance"][name]["float64"][component]["maximum"] for name in ("original", "stripped")}
    assert 0.5 < errors["stripped"] / errors["original"] < 2
    assert errors["original"] > 1e-3  # approximate
    clean, original = load_file("clean/model.safetensors"), load_file("net.safetensors")
    mixtures = [key for key in original if key.endswith("combination_weights")]
    assert mixtures
    assert any(not torch.equal(clean[key], original[key]) for key in mixtures)  # its own relaxed weights stay and learn
    model = adapter.rebuild(clean)
    assert model is not None
    model.load_state_dict(clean)
    _require_equal_predictions(model, Path("clean/model.onnx"))


def _require_equal_predictions(model: torch.nn.Module, path: Path) -> None:
    import onnxruntime

    frames = next(make_task().batches("test", 0))["frames"]
    (found,) = onnxruntime.InferenceSession(str(path)).run(["next"], {"frames": frames.numpy()})
    np.testing.assert_allclose(found, model(frames).detach().numpy(), rtol=1e-4, atol=1e-5)
