"""Equiformer from its file to its file: every command on a checkpoint of the public code's form, and its task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import TaskError
from surgeon_adapters.atoms.md17 import read_md17
from surgeon_adapters.zoo.equiformer import build
from surgeon_adapters.zoo.equiformer.task import EquiformerTask
from tests.commands import QUICK, Surgeon
from tests.families.equiformer_models import L1, network, write_md17
from tests.processes import forked

pytestmark = pytest.mark.e3nn

ARGUMENTS = {"batch_size": 4, "validation": 2, "test": 2, "mean": 0.0, "std": 1.0}
TASK = ("--task", "equiformer:ethanol.npz", "--task-args", json.dumps(ARGUMENTS))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_md17(tmp_path / "ethanol.npz")
    return tmp_path


@pytest.fixture
def checkpoint(work: Path) -> Path:
    """A checkpoint, and thirty times its own energies and forces as labels, towards which every step leads."""
    model = network(L1)
    frames = read_md17(work / "ethanol.npz")
    count, atoms = frames.positions.shape[:2]
    given = frames.numbers.repeat(count), frames.positions.reshape(-1, 3), torch.arange(count).repeat_interleave(atoms)
    energy, forces = (30 * output.detach() for output in model(*given))
    arrays = {"z": frames.numbers, "R": frames.positions, "E": energy, "F": forces.reshape(count, atoms, 3)}
    np.savez(work / "ethanol.npz", **{name: array.numpy() for name, array in arrays.items()})
    torch.save({"state_dict": model.float().state_dict()}, work / "best.pth.tar")
    return work / "best.pth.tar"


def bound(work: Path, model: nn.Module, **arguments: Any) -> EquiformerTask:
    return EquiformerTask(work / "ethanol.npz", **arguments).for_model(model)


def opened_by_its_class(path: Path) -> nn.Module:
    """Open a checkpoint as a user of the public code does: build, and load strictly."""
    model = build(settings=L1)
    model.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    return model.eval()


def prediction(model: nn.Module, work: Path) -> dict[str, Tensor]:
    task = bound(work, model)
    return task.forward(model, next(iter(task.batches("validation", 0))))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_file_to_file(work: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surgeon = Surgeon(work, capsys)
    options = ("--group", "SO3", *TASK, "--include", "*.ffn.*", "-o", "relaxed", "--json")
    plan = surgeon("relax", checkpoint.name, *options).data["plan"]
    assert [site["name"] for site in plan["sites"]] == ["blocks.0.ffn.fctp_1.tp", "blocks.0.ffn.fctp_2.tp"]
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "3e-3", "-o", "run")
    report = surgeon("export", "run", "--container", *QUICK, "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    errors = {name: report["equivariance"][name]["float64"]["identity"]["maximum"] for name in ("original", "stripped")}
    assert errors["stripped"] < 3 * errors["original"] + 1e-12
    metrics = report["metrics"]
    assert metrics["stripped"]["force_mae"] < metrics["original"]["force_mae"]
    own, original = (opened_by_its_class(work / name) for name in ("clean/best.pth.tar", "best.pth.tar"))
    clean = build(settings=L1).eval()
    clean.load_state_dict(_safetensors(work / "clean" / "model.safetensors"))
    ours, theirs = prediction(clean, work), prediction(own, work)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("energy", "forces"))
    assert relative_difference(prediction(original, work), theirs) > 1e-3  # it was trained
    # in another process: nothing recorded may depend on what ran before
    verified = forked(work, "verify", "clean", "--against", "best.pth.tar", *TASK)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_task_speaks_in_kcal_per_mol(work: Path) -> None:
    model = network(L1)
    task = bound(work, model, mean=-97000.0, std=2.0)
    batch = next(iter(task.batches("validation", 0)))
    assert batch["energy"].dtype == torch.float64
    assert batch["energy"].abs().max() < 100  # relative to the mean
    energy, forces = model(batch["z"], batch["pos"], batch["batch"])
    outputs = task.forward(model, batch)
    assert torch.allclose(outputs["energy"], 2 * energy[:, 0])
    assert torch.allclose(outputs["forces"], 2 * forces)
    perfect = {"energy": batch["energy"], "forces": batch["forces"]}
    assert float(task.loss(perfect, batch)) == 0
    off = {"energy": batch["energy"] + 3, "forces": batch["forces"] + torch.tensor([0.0, 3, 4])}
    assert float(task.loss(off, batch)) == pytest.approx((3 + 80 * 5) / 2)
    assert {name: float(total) / count for name, (total, count) in task.metrics(off, batch).items()} == {
        "energy_mae": pytest.approx(3),
        "force_mae": pytest.approx(7 / 3),
    }


def test_training_frames_come_in_another_order_for_each_seed(work: Path) -> None:
    task = bound(work, network(L1), batch_size=4)
    energies = [torch.cat([batch["energy"] for batch in task.batches("train", seed)]) for seed in (0, 0, 1)]
    assert torch.equal(energies[0], energies[1])
    assert not torch.equal(energies[0], energies[2])
    assert torch.equal(energies[0].sort().values, energies[2].sort().values)
    assert len(task.batches("train", 0)) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"train": 12}, r"12 \+ 1 \+ 1 frames"),
        ({"train": 1}, "give std"),
        ({"std": -1.0}, "standard deviation of -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(work: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        bound(work, network(L1), **arguments)


def test_networks_that_the_task_is_not_for_are_refused(work: Path) -> None:
    with pytest.raises(TaskError, match="expected an Equiformer.*Linear"):
        bound(work, nn.Linear(1, 1))
    with pytest.raises(TaskError, match=r"from 0 to 4.*\[1, 6, 8\].*QM9"):
        bound(work, network({**L1, "atom_types": 5}))
    with pytest.raises(TaskError, match="for_model"):
        EquiformerTask(work / "ethanol.npz").batches("train", 0)


def test_the_command_line_names_the_arguments_of_the_task(
    work: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--task", "equiformer:ethanol.npz", "--task-args", json.dumps({"fold": 3}))
    assert "fold" in Surgeon(work, capsys)("inspect", checkpoint.name, *arguments, code=2).err
