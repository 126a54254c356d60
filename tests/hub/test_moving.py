"""A relaxed model goes to the Hub and comes back, in processes that share nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surgeon.workspace import open_path
from tests import tiny
from tests.commands import PYTHON_PATH, Surgeon, child
from tests.hub.server import Hub

REPO = "alice/net-relaxed"
STATES = ("model.safetensors", "relaxation.safetensors", "training_state/state.safetensors")
LOAD = """
import json, sys, torch, surgeon
from tests import tiny
opened = surgeon.from_hub("alice/net-relaxed", model=tiny.make_net, mode=sys.argv[1] if len(sys.argv) > 1 else None)
batch = next(iter(tiny.TinyTask().batches("test", 0)))
if opened.relaxation:
    opened.relaxation.set_theta(0.7)
print(json.dumps({
    "outputs": opened.model(batch["scalars"], batch["vectors"]).tolist(),
    "origin": str(opened.origin),
    "keys": list(opened.model.state_dict()),
}))
"""
STRICT = """
import json
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from tests import tiny
model = tiny.Net()
model.load_state_dict(load_file(hf_hub_download("alice/net-relaxed", "model.safetensors")), strict=True)
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("surgeon_cli", "surgeon_adapters")]
batch = next(iter(tiny.TinyTask().batches("test", 0)))
print(json.dumps(model(batch["scalars"], batch["vectors"]).tolist()))
"""


def outputs_of(model: torch.nn.Module) -> list[list[float]]:
    batch = next(iter(tiny.TinyTask().batches("test", 0)))
    result: list[list[float]] = model(batch["scalars"], batch["vectors"]).tolist()
    return result


def run_python(environment: dict[str, str], folder: Path, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**environment, **PYTHON_PATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another folder with nothing but the task file."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(tiny.__file__, folder / "task.py")
    return folder


def test_three_ways_to_load(logged_in: Hub, environment: dict[str, str], surgeon: Surgeon, elsewhere: Path) -> None:
    surgeon("relax", "net.pt", "--task", "task.py", "--init-scale", "0.1")
    commit = surgeon("push", "net-relaxed", REPO, "--json").data["commit"]
    local = open_path(surgeon.path / "net-relaxed")
    assert local.relaxation is not None
    local.relaxation.set_theta(0.7)
    relaxed = json.loads(run_python(environment, elsewhere, LOAD))
    assert relaxed["origin"] == f"hf://{REPO}@{commit}"
    assert relaxed["outputs"] == outputs_of(local.model)
    original = tiny.Net()
    original.load_state_dict(torch.load(surgeon.path / "net.pt", weights_only=True))
    assert relaxed["outputs"] != outputs_of(original)
    dropped = json.loads(run_python(environment, elsewhere, LOAD, "drop"))
    assert dropped["keys"] == list(original.state_dict())
    assert dropped["outputs"] == outputs_of(original)
    assert json.loads(run_python(environment, elsewhere, STRICT)) == outputs_of(original)


@pytest.mark.slow
def test_training_goes_on_elsewhere_to_the_bit(
    logged_in: Hub, environment: dict[str, str], surgeon: Surgeon, elsewhere: Path
) -> None:
    training = ("--epochs", "4", "--lr", "1e-2")
    surgeon("relax", "net.pt", "--task", "task.py", "--strip-mode", "fold", "--init-scale", "0.1")
    surgeon("finetune", "net-relaxed", "-o", "whole", *training)
    surgeon(
        *("finetune", "net-relaxed", "-o", "half", *training, "--task", "task.py"),
        *("--task-args", '{"trouble": "stop once", "at": 8}'),
        code=2,
    )
    surgeon("push", "half", REPO, "--with-training-state")
    shutil.rmtree(surgeon.path / "half")
    for command in (
        ("pull", f"hf://{REPO}", "-o", "run"),
        ("finetune", "run", "-o", "run", *training, "--task", "task.py"),
    ):
        done = child(elsewhere, *command, environment=environment)
        assert done.returncode == 0, done.stderr
    for name in STATES:
        moved, stayed = load_file(elsewhere / "run" / name), load_file(surgeon.path / "whole" / name)
        assert moved.keys() == stayed.keys()
        assert all(torch.equal(moved[key], stayed[key]) for key in moved), name
    before = load_file(surgeon.path / "net-relaxed" / "relaxation.safetensors")
    after = load_file(elsewhere / "run" / "relaxation.safetensors")
    assert not all(torch.equal(before[key], after[key]) for key in before), "nothing was trained"
