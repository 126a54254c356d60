"""A relaxed model goes to the Hub and comes back, in processes that share nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, Surgeon
from tests.hub.server import Hub

LOAD = """
import sys, json, torch, surgeon
from tests import tiny
opened = surgeon.from_hub("alice/net-relaxed", model=tiny.make_net)
opened.relaxation.set_theta(0.7)
torch.manual_seed(0)
print(json.dumps({"out": opened.model(torch.randn(2, 2), torch.randn(2, 2, 3)).tolist(), "origin": str(opened.origin)}))
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Surgeon.folder(tmp_path, monkeypatch)


@pytest.fixture
def surgeon(work: Path, capsys: pytest.CaptureFixture[str]) -> Surgeon:
    return Surgeon(work, capsys)


def test_a_relaxed_model_opens_in_another_process(
    logged_in: Hub, environment: dict[str, str], surgeon: Surgeon, tmp_path: Path
) -> None:
    surgeon("relax", "net.pt", "--task", "task.py", "--init-scale", "0.1")
    pushed = surgeon("push", "net-relaxed", "alice/net-relaxed", "--json").data
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["origin"] == f"hf://alice/net-relaxed@{pushed['commit']}"
