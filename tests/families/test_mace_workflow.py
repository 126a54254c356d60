"""MACE from its file to its file: every command on a shipped potential, and MACE's own calculator on what comes out."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.algebra.groups.parse import parse_group
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import task_symmetry
from surgeon.opening.workspace import Workspace
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from surgeon_adapters.atoms.task import FrameBatches
from surgeon_adapters.mace.adapter import adapter
from surgeon_adapters.mace.data import head_of
from surgeon_adapters.mace.models import decoded, import_mace
from surgeon_adapters.mace.task import MaceTask
from tests.commands import CHILD_ENVIRONMENT, QUICK, ROOT, Surgeon, child
from tests.families.frames import frames_of, require_pairs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")
pytest.importorskip("typer", reason="the command line is not installed: make test-mace")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

MOLECULES = ROOT / "examples" / "molecules"
DATA = MOLECULES / "ethanol_gfn2.xyz"
WEIGHTS = MOLECULES / "mace_gfn1.safetensors"
TASK = ("--task", f"mace:{DATA}", "--task-args", '{"fraction": 0.2, "batch_size": 4}')

CALCULATOR = """
import json, sys, warnings
warnings.simplefilter("ignore")
import ase.io
from mace.calculators import MACECalculator
path, data, dtype = sys.argv[1:]
calculator = MACECalculator(model_paths=path, device="cpu", default_dtype=dtype)
results = []
for frame in ase.io.read(data, ":")[3:6]:
    frame.calc = calculator
    results.append([frame.get_potential_energy(), frame.get_forces().tolist()])
print(json.dumps(results))
"""


def opened(path: Path, **options: Any) -> Workspace:
    return open_path(path, OpenOptions(task=f"mace:{DATA}", **options))


def pickled(folder: Path, scripted: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """Write the shipped potential as MACE's own training does: a whole module, by default with scripted layers."""
    import e3nn

    module = open_path(WEIGHTS).model
    if scripted:
        described = adapter.describe(module)
        assert described is not None
        settings = {key: decoded(value) for key, value in described["args"]["settings"].items()}
        assert e3nn.get_optimization_defaults()["jit_script_fx"]
        again = import_mace().ScaleShiftMACE(**settings)
        again.load_state_dict(module.state_dict())
        module = again
    path = folder / "base.model"
    torch.save(module.to(dtype), path)
    return path


def by_the_calculator(path: Path, dtype: str) -> list[Any]:
    """Energies and forces of MACE's calculator, in a process of its own, for it changes the environment."""
    done = subprocess.run(
        [sys.executable, "-c", CALCULATOR, str(path), str(DATA), dtype],
        env=CHILD_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestContract(AdapterContract):
    adapter = "surgeon_adapters.mace.adapter:adapter"
    libraries = ("mace", "e3nn", "ase")
    annotates = False  # its layers are e3nn's
    tolerance = 1e-7  # constants of a float32 checkpoint

    def sample(self) -> Model:
        module = open_path(WEIGHTS).model.double().eval()
        task = MaceTask(DATA, batch_size=3).for_model(module)
        batch = next(iter(task.batches("validation", 0)))
        return Model(module, (batch,), task_symmetry(task, parse_group("O3")))

    def data(self) -> Path:
        return DATA


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_from_file_to_file(work: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    surgeon = Surgeon(work, capsys)
    pickled(work, dtype=getattr(torch, dtype))
    inspected = surgeon("inspect", "base.model", "--trust-pickle", "--group", "O3", *TASK, "--json").data
    assert inspected["model"] == "ScaleShiftMACE"
    assert "mace.models:build" in inspected["found_by"]
    assert len(inspected["plan"]["sites"]) == 7
    surgeon("relax", "base.model", "--trust-pickle", *TASK, "--strip-mode", "fold", "-o", "relaxed")
    # neither the relaxed folder nor the run needs the pickle any more
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "1e-3", "-o", "run")
    exported = surgeon("export", "run", "--trust-pickle", "--container", *QUICK, "-o", "clean", "--json")
    report = exported.data["certificate"]
    assert report["grade"] == "same function"
    assert report["metrics"]["stripped"]["force_mae"] != report["metrics"]["original"]["force_mae"]
    require_pairs(report, "H", "C", "O")
    for part in ("identity", "inversion"):
        errors = {name: report["equivariance"][name]["float64"][part]["maximum"] for name in ("original", "stripped")}
        assert errors["stripped"] < 3 * errors["original"] + 1e-12
    # the negative twin: while the branches act, the same check sees them
    broken = next(iter(report["equivariance"]["relaxed, theta 1"].values()))
    assert broken["identity"]["median"] > 1e-3
    # in another process: nothing recorded may depend on what ran before
    verified = child(work, "verify", "clean", "--against", "base.model", "--trust-pickle", *TASK)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    _require_equal_predictions(work / "clean" / "base.model", work / "clean" / "model.safetensors", dtype)


def _require_equal_predictions(container: Path, weights: Path, dtype: str) -> None:
    """Compare MACE's calculator on the container with this package's forward on the clean weights."""
    workspace = opened(weights)
    head = head_of(workspace.model, None)
    task: Any = workspace.require_task().task
    frames = frames_of(DATA, head)
    outputs = task.forward(workspace.model.eval(), next(iter(FrameBatches(frames, range(3), 3))))
    energies, forces = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*by_the_calculator(container, dtype), strict=True)
    )
    reference = sum(head.isolated[number] for number in (6, 6, 8, 1, 1, 1, 1, 1, 1))
    own = outputs["energy"].double() + reference
    assert (energies.double() - own).abs().max() < {"float32": 1e-4, "float64": 1e-10}[dtype]
    deviation = (forces.reshape(-1, 3) - outputs["forces"]).abs().max() / outputs["forces"].abs().max()
    assert deviation < {"float32": 1e-5, "float64": 1e-10}[dtype]
