"""NequIP from its file to its file: every command, and NequIP's own calculator on what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.export.container import write_container
from surgeon.finding.annotated_ops import collect_proposals
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import task_symmetry
from surgeon.registry import installed_adapters
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.modes import default_dtype
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from surgeon_adapters.nequip.adapter import adapter
from surgeon_adapters.nequip.data import potential_of
from surgeon_adapters.nequip.models import build, import_nequip, nequip_state
from surgeon_adapters.nequip.task import NequipTask
from tests.commands import CHILD_ENVIRONMENT, QUICK, Surgeon, child
from tests.families.frames import frames_of, require_pairs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nequip", reason="nequip is not installed: make test-nequip")
pytest.importorskip("typer", reason="the command line is not installed: make test-nequip")

from tests.families.nequip_checkpoints import DATA, SETTINGS, write  # noqa: E402 (it needs nequip)
from tests.families.shifted_labels import require_shift  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

TASK = ("--task", f"nequip:{DATA}", "--task-args", '{"fraction": 0.2, "batch_size": 4, "forces_weight": 100}')
COMPILE = ("-m", "nequip.scripts.compile", "--mode", "aotinductor", "--device", "cpu", "--target", "ase")
CALCULATOR = """
import json, sys, warnings
warnings.simplefilter("ignore")
import ase.io
from nequip.integrations.ase import NequIPCalculator
path, data = sys.argv[1:]
load = NequIPCalculator.from_compiled_model if path.endswith(".pt2") else NequIPCalculator._from_saved_model
calculator = load(path)
results = []
frames = ase.io.read(data, ":")
for frame in frames[3:6] if len(frames) > 50 else frames:
    frame.calc = calculator
    results.append([frame.get_potential_energy(), frame.get_forces().tolist()])
print(json.dumps(results))
"""


def run(*command: str) -> str:
    """Run Python in a process of its own: NequIP's commands and its calculator change the state of theirs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env=CHILD_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def require_equal_predictions(opened_by_nequip: Path, weights: Path, dtype: str) -> None:
    """Compare NequIP's calculator on a file with this package's forward on the clean weights."""
    results = json.loads(run("-c", CALCULATOR, str(opened_by_nequip), str(DATA)).splitlines()[-1])
    workspace = open_path(weights, OpenOptions(task=f"nequip:{DATA}"))
    task: Any = workspace.require_task().task
    batch = frames_of(DATA, potential_of(workspace.model, None)).batch(range(3))
    outputs = task.forward(workspace.model.eval(), batch)
    energies, forces = (torch.tensor(column, dtype=torch.float64) for column in zip(*results, strict=True))
    shifts = dict(zip(SETTINGS["type_names"], potential_of(workspace.model, None).energies.values, strict=True))
    own = outputs["energy"][:, 0] + 2 * shifts["C"] + shifts["O"] + 6 * shifts["H"]
    assert (energies - own).abs().max() < {"float32": 1e-4, "float64": 1e-10}[dtype]
    deviation = (forces.reshape(-1, 3) - outputs["forces"]).abs().max() / forces.abs().max()
    assert deviation < {"float32": 1e-5, "float64": 1e-10}[dtype]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestContract(AdapterContract):
    adapter = "surgeon_adapters.nequip.adapter:adapter"
    libraries = ("nequip", "e3nn", "ase", "lightning", "hydra")
    annotates = False  # its layers are e3nn's

    def sample(self) -> Model:
        with default_dtype(torch.float64):
            module = build(SETTINGS).eval()
        task = NequipTask(DATA, batch_size=3).for_model(module)
        batch = next(iter(task.batches("validation", 0)))
        return Model(module, (batch,), task_symmetry(task, parse_group("O3")))

    def data(self) -> Path:
        return DATA


def calculated(path: Path, data: Path) -> list[tuple[float, Any]]:
    results: list[tuple[float, Any]] = json.loads(run("-c", CALCULATOR, str(path), str(data)).splitlines()[-1])
    return results


def test_shifted_labels_shift_the_energies_per_type(tmp_path: Path) -> None:
    file, tensor = write(tmp_path / "base.ckpt", average=True), "model.func.per_type_energy_scale_shift.shifts"
    require_shift(file, tensor, NequipTask, calculated, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "average"), [("float32", True), ("float64", False)])
def test_from_checkpoint_to_checkpoint(
    work: Path, capsys: pytest.CaptureFixture[str], dtype: str, average: bool
) -> None:
    surgeon = Surgeon(work, capsys)
    write(work / "base.ckpt", {**SETTINGS, "model_dtype": dtype}, average)
    inspected = surgeon("inspect", "base.ckpt", "--group", "O3", *TASK, "--json").data
    assert inspected["model"] == "GraphModel"
    assert "nequip.models:build" in inspected["found_by"]
    assert len(inspected["plan"]["sites"]) == 3
    surgeon("relax", "base.ckpt", *TASK, "--strip-mode", "fold", "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "1e-2", "-o", "run")
    report = surgeon("export", "run", "--container", *QUICK, "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    assert report["details"]["container"]["opened_by"] == "the loader of the adapter nequip"
    assert report["metrics"]["stripped"]["force_mae"] < report["metrics"]["original"]["force_mae"]
    require_pairs(report, "H", "C", "O")
    for part in ("identity", "inversion"):
        errors = {name: report["equivariance"][name]["float64"][part]["maximum"] for name in ("original", "stripped")}
        assert errors["stripped"] < 3 * errors["original"] + 1e-12
    # the negative twin: while the branches act, the same check sees them
    broken = next(iter(report["equivariance"]["relaxed, theta 1"].values()))
    assert broken["identity"]["median"] > 1e-3
    if average:  # in another process: nothing recorded may depend on what ran before
        verified = child(work, "verify", "clean", "--against", "base.ckpt", *TASK)
        assert verified.returncode == 0, verified.stdout + verified.stderr
    require_equal_predictions(work / "clean" / "base.ckpt", work / "clean" / "model.safetensors", dtype)
    before, after = (torch.load(folder / "base.ckpt", weights_only=True) for folder in (work, work / "clean"))
    assert list(after) == list(before)
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert after["hyper_parameters"] == before["hyper_parameters"]


@pytest.mark.slow
def test_from_package_to_package(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surgeon = Surgeon(work, capsys)
    write(work / "base.ckpt")
    run("-m", "nequip.scripts.package", "build", "base.ckpt", "base.nequip.zip")
    refused = surgeon("inspect", "base.nequip.zip", code=2)
    assert "--trust-pickle" in refused.err
    surgeon("relax", "base.nequip.zip", "--trust-pickle", *TASK, "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "1e-2", "-o", "run")
    exported = surgeon("export", "run", "--container", "--trust-pickle", *QUICK, "-o", "clean", "--json")
    report = exported.data["certificate"]
    assert report["grade"] == "same function"
    assert report["metrics"]["stripped"]["force_mae"] < report["metrics"]["original"]["force_mae"]
    assert report["details"]["container"]["opened_by"] == "the loader of the adapter nequip"
    package = work / "clean" / "base.nequip.zip"
    require_equal_predictions(package, work / "clean" / "model.safetensors", "float32")
    rebuilt = open_path(work / "clean" / "model.safetensors").model
    _require_weights_in_all(package, rebuilt.state_dict())
    _require_the_same_layers(package, rebuilt)


def _require_the_same_layers(path: Path, rebuilt: nn.Module) -> None:
    """What NequIP's own training makes of a package has layers of classes that are e3nn's by their structure only."""
    with nequip_state():
        packaged = import_nequip("model").ModelFromPackage(str(path))["sole_model"]
    assert not any(isinstance(module, import_e3nn().Linear) for module in packaged.modules())
    group, adapters = parse_group("O3"), installed_adapters()
    found, expected = (collect_proposals(model, group, adapters)[0] for model in (packaged, rebuilt))
    assert found
    assert found == expected


def _require_weights_in_all(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """A package holds one model to run and another to compile."""
    from torch.package.package_importer import PackageImporter

    for kind in ("eager", "compile"):
        models = PackageImporter(path).load_pickle("model", f"{kind}_model.pkl", map_location="cpu")
        found = models["sole_model"].state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), kind


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif("SURGEON_TEST_COMPILE" not in os.environ, reason="takes a minute: set SURGEON_TEST_COMPILE=1")
def test_what_was_exported_compiles(tmp_path: Path) -> None:
    """By ``nequip-compile``, which needs a C++ compiler; the calculator opens what it makes."""
    workspace = open_path(write(tmp_path / "base.ckpt", average=True))
    model = workspace.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    write_container(workspace.checkpoint, model.state_dict(), tmp_path / "new.ckpt")
    told = adapter.usage(model, "new.ckpt")
    assert told is not None
    assert f"nequip-compile new.ckpt compiled.nequip.pt2 {' '.join(COMPILE[2:])}\n" in told
    statement = json.loads(workspace.checkpoint.metadata["surgeon.model"])
    save_file(model.state_dict(), tmp_path / "new.safetensors", {"surgeon.model": json.dumps(statement)})
    run(*COMPILE, str(tmp_path / "new.ckpt"), str(tmp_path / "new.nequip.pt2"))
    require_equal_predictions(tmp_path / "new.nequip.pt2", tmp_path / "new.safetensors", "float32")
