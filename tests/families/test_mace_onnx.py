"""A pickled MACE potential with scripted layers goes through relaxation to ONNX, for any number of molecules."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import Surgeon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_a_pickle_with_scripted_layers_becomes_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    from tests.families import mace_task
    from tests.families.mace_models import potential

    surgeon = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)
    shutil.copy(mace_task.__file__, "energies.py")
    module = potential(scripted=True, hidden="4x0e+4x1o", max_ell=1).module.float()
    assert any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())
    torch.save(module, "net.model")
    surgeon("relax", "net.model", "--group", "O3", "--task", "energies.py", "-o", "relaxed", "--trust-pickle")
    surgeon("export", "relaxed", "-o", "clean", "--onnx", "--container", "--trust-pickle")
    certificate = json.loads(Path("clean/certificate.json").read_text())
    assert certificate["grade"] == "same function"
    record = certificate["details"]["onnx"]
    assert record["deviation"] <= 1
    assert max(record["equivariance"].values()) <= 1
    assert {"positions", "edge_index", "batch", "ptr"} <= set(record["inputs"])
    again = torch.load("clean/net.model", weights_only=False).eval()
    session = onnxruntime.InferenceSession("clean/model.onnx")
    for counts in ([2], [7, 2, 3, 3, 2, 5], [3, 3]):
        batch = mace_task.molecules(counts, 7)
        (found,) = session.run(None, {name: batch[name].numpy() for name in record["inputs"]})
        energy = mace_task.task.forward(again, batch)["energy"].detach().numpy()
        np.testing.assert_allclose(found, energy, rtol=1e-4, atol=1e-4)
