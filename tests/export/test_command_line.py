"""From a checkpoint to ONNX and its certificate by the command line, for one network of each kind.

One of the files is then used without torch and without this package, and gives the same test error.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from surgeon.opening.evaluation import evaluate
from surgeon.opening.tasks import load_task
from tests.commands import QUICK, Surgeon

ROOT = Path(__file__).parents[2]
NBODY = ROOT / "examples" / "nbody"
POINTS = [ROOT / "examples/pointcloud" / f"{name}.py" for name in ("task", "shapes")]
SMALL = {"points": 16, "count": 24, "held_out": 12, "base": 6, "neighbours": 4, "batch_size": 12}
CASES = {
    "energies and forces": ([ROOT / "tests/export/potential.py"], "O3", {}, ["energy", "forces"]),
    "nodes and edges": ([ROOT / "tests/export/particles.py", NBODY / "segnn.py"], "O3", {}, ["moved"]),
    "points and neighbours": (POINTS, "SO3", {**SMALL, "network": "dgcnn"}, ["logits"]),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", CASES)
def test_checkpoint_onnx_and_certificate_agree(surgeon: Surgeon, work: Path, case: str) -> None:
    files, group, arguments, outputs = CASES[case]
    for file in files:
        shutil.copy(file, file.name)
    task = ("--task", files[0].name, "--task-args", json.dumps(arguments))
    torch.manual_seed(0)
    model = load_task(files[0].name, arguments).task.model()  # type: ignore[attr-defined]
    torch.save(model.state_dict(), "model.pt")
    surgeon("relax", "model.pt", "--group", group, *task, "-o", "relaxed")
    surgeon("finetune", "relaxed", *task, "--epochs", "1", "--lr", "1e-3", "-o", "run")
    surgeon("export", "run", *task, "-o", "clean", "--onnx", "--metrics", "validation", *QUICK)
    certificate = json.loads(Path("clean/certificate.json").read_text())
    record = certificate["details"]["onnx"]
    assert certificate["grade"] == "same function"
    assert record["outputs"] == outputs
    assert record["deviation"] <= 1
    assert set(record["equivariance"]) == set(certificate["equivariance"]["stripped"]["float64"])
    assert max(record["equivariance"].values()) <= 1
    assert len({tuple(size) for size in record["sizes"]}) >= 3
    if case == "nodes and edges":
        model.load_state_dict(load_file("clean/model.safetensors"))
        require_the_test_error_without_torch(Path("clean/model.onnx").absolute(), model)


def require_the_test_error_without_torch(file: Path, model: nn.Module) -> None:
    """Compare what the N-body example prints, with numpy and ONNX Runtime alone, with the model's own error."""
    done = run_alone(file, ["torch", "surgeon", "e3nn", "scipy"])
    assert done.returncode == 0, done.stderr
    words, loaded = done.stdout.splitlines()
    task = load_task(NBODY / "task.py", {"test_samples": SAMPLES}).task
    name, value = words.split()
    assert name == "mse"
    assert float(value) == pytest.approx(evaluate(model, task, "test")["mse"], rel=1e-5)
    assert {"numpy", "onnxruntime"} <= set(loaded.split())
    assert "torch" not in loaded.split()


SAMPLES = 200
"""Trajectories of the test."""

ALONE = """
import runpy, sys
sys.path.insert(0, {folder!r})

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
sys.argv = ["run_onnx.py", {file!r}, "{samples}"]
runpy.run_path({script!r}, run_name="__main__")
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def run_alone(file: Path, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the example's script in a process in which some packages cannot be imported."""
    code = ALONE.format(
        folder=str(NBODY), blocked=blocked, file=str(file), samples=SAMPLES, script=str(NBODY / "run_onnx.py")
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)


def test_a_package_that_the_script_needs_would_be_missed(tmp_path: Path) -> None:
    done = run_alone(tmp_path / "model.onnx", ["onnxruntime"])
    assert done.returncode != 0
    assert "onnxruntime is blocked" in done.stderr
