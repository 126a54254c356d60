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

from surgeon.editing.strip import strip
from surgeon.hub.loading import save_pretrained
from surgeon.opening.open import open_path
from tests import tiny
from tests.commands import PYTHON_PATH, Surgeon, child
from tests.hub.server import Hub

REPO = "alice/net-relaxed"
STATES = ("model.safetensors", "relaxation.safetensors", "training_state/state.safetensors")
LOAD = """
import json, sys, torch, surgeon
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from tests import tiny

batch = next(iter(tiny.TinyTask().batches("test", 0)))
found = {}
strict = tiny.Net()
strict.load_state_dict(load_file(hf_hub_download("alice/net-relaxed", "model.safetensors")), strict=True)
found["strict"] = strict(batch["scalars"], batch["vectors"]).tolist()
for mode in (None, "drop", "fold"):
    opened = surgeon.from_hub("alice/net-relaxed", model=tiny.make_net, mode=mode)
    if mode is not None:
        assert opened.relaxation is None
        assert list(opened.model.state_dict()) == list(strict.state_dict())
    found[str(mode)] = opened.model(batch["scalars"], batch["vectors"]).tolist()
    found["origin"] = str(opened.origin)
print(json.dumps(found))
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
        timeout=600,
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


@pytest.mark.slow
def test_three_ways_to_load(logged_in: Hub, environment: dict[str, str], surgeon: Surgeon, elsewhere: Path) -> None:
    surgeon("relax", "net.pt", "--task", "task.py", "--init-scale", "0.1")
    opened = open_path(surgeon.path / "net-relaxed")
    assert opened.relaxation is not None
    opened.relaxation.set_theta(0.5)
    save_pretrained(opened, surgeon.path / "half")
    commit = surgeon("push", "half", REPO, "--json").data["commit"]
    found = json.loads(run_python(environment, elsewhere, LOAD))
    assert found["origin"] == f"hf://{REPO}@{commit}"
    original = tiny.Net()
    original.load_state_dict(torch.load(surgeon.path / "net.pt", weights_only=True))
    assert found["strict"] == found["drop"] == outputs_of(original)
    assert found["None"] == outputs_of(opened.model) != outputs_of(original)
    strip(opened.relaxation, "fold")
    assert found["fold"] == outputs_of(opened.model) not in (outputs_of(original), found["None"])


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
    pull = f"with suppress(SystemExit):\n    main(['pull', 'hf://{REPO}', '-o', 'run'])"
    before = f"from contextlib import suppress\nfrom surgeon_cli.main import main\n{pull}"
    command = ("finetune", "run", "-o", "run", *training, "--task", "task.py")
    done = child(elsewhere, *command, before=before, environment=environment)
    assert done.returncode == 0, done.stderr
    for name in STATES:
        moved, stayed = load_file(elsewhere / "run" / name), load_file(surgeon.path / "whole" / name)
        assert moved.keys() == stayed.keys()
        assert all(torch.equal(moved[key], stayed[key]) for key in moved), name
    before = load_file(surgeon.path / "net-relaxed" / "relaxation.safetensors")
    after = load_file(elsewhere / "run" / "relaxation.safetensors")
    assert not all(torch.equal(before[key], after[key]) for key in before), "nothing was trained"
