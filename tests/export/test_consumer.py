"""An exported file is used without torch and without this package, and gives the same test error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx_ir
import pytest
import torch
from safetensors.torch import load_file

from surgeon.evaluation import evaluate
from surgeon.export import sample_of
from surgeon.export.convert import to_onnx
from surgeon.tasks import load_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "nbody"
ALONE = """
import runpy, sys
sys.path.insert(0, {folder!r})

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
sys.argv = ["run_onnx.py", {file!r}]
runpy.run_path({script!r}, run_name="__main__")
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def run_alone(file: Path, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the example's script in a process in which some packages cannot be imported."""
    script = EXAMPLE / "run_onnx.py"
    code = ALONE.format(folder=str(EXAMPLE), blocked=blocked, file=str(file), script=str(script))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_numpy_and_onnxruntime_alone_reproduce_the_test_error(tmp_path: Path) -> None:
    task: Any = load_task(EXAMPLE / "task.py").task
    model = task.model()
    model.load_state_dict(load_file(EXAMPLE / "segnn_nbody.safetensors"), strict=True)
    path = tmp_path / "model.onnx"
    onnx_ir.save(to_onnx(model, task, sample_of(task, torch.float32)), path)
    done = run_alone(path, ["torch", "surgeon", "e3nn", "scipy"])
    assert done.returncode == 0, done.stderr
    words, loaded = done.stdout.splitlines()
    name, value = words.split()
    assert name == "mse"
    assert float(value) == pytest.approx(evaluate(model, task, "test")["mse"], rel=1e-5)
    assert {"numpy", "onnxruntime"} <= set(loaded.split())
    assert "torch" not in loaded.split()


def test_a_package_that_the_script_needs_would_be_missed(tmp_path: Path) -> None:
    done = run_alone(tmp_path / "model.onnx", ["onnxruntime"])
    assert done.returncode != 0
    assert "onnxruntime is blocked" in done.stderr
