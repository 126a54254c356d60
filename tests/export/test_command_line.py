"""From a checkpoint to ONNX and a verified certificate by the command line, for one network of each kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from surgeon.tasks import load_task
from tests.commands import Surgeon

ROOT = Path(__file__).parents[2]
POINTS = [ROOT / "examples/pointcloud" / f"{name}.py" for name in ("task", "shapes")]
SMALL = {"points": 16, "count": 24, "held_out": 12, "base": 6, "neighbours": 4, "batch_size": 12}
CASES = {
    "energies and forces": ([ROOT / "tests/export/potential.py"], "O3", {}, ["energy", "forces"]),
    "nodes and edges": ([ROOT / "tests/export/particles.py", ROOT / "examples/nbody/segnn.py"], "O3", {}, ["moved"]),
    "points": (POINTS, "SO3", {**SMALL, "network": "pointnet"}, ["logits"]),
    "points and neighbours": (POINTS, "SO3", {**SMALL, "network": "dgcnn"}, ["logits"]),
}
VERIFIED = ("points",)


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
    surgeon("export", "run", *task, "-o", "clean", "--onnx", "--metrics", "validation")
    certificate = json.loads(Path("clean/certificate.json").read_text())
    record = certificate["details"]["onnx"]
    assert certificate["identical"]
    assert record["outputs"] == outputs
    assert record["deviation"] <= 1
    assert set(record["equivariance"]) == set(certificate["equivariance"]["stripped"]["float64"])
    assert max(record["equivariance"].values()) <= 1
    assert len({tuple(size) for size in record["sizes"]}) >= 3
    if case not in VERIFIED:  # each verification is one more export
        return
    surgeon("verify", "clean", "--against", "model.pt", *task)
    weights = Path("clean/model.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(bytes(damaged))
    assert "model.safetensors" in surgeon("verify", "clean", "--against", "model.pt", *task, code=1).out
