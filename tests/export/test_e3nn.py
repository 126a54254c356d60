"""From a checkpoint of e3nn layers to ONNX by the command line, with every supported version of e3nn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.commands import QUICK, Surgeon
from tests.export import gated

pytestmark = [pytest.mark.e3nn, pytest.mark.slow]


def test_checkpoint_onnx_and_certificate_agree(surgeon: Surgeon, work: Path) -> None:
    from safetensors.torch import load_file

    shutil.copy(gated.__file__, "gated.py")
    model = gated.Gated()
    model.norm.running_mean = torch.tensor([0.3, -0.2])
    model.norm.running_var = torch.tensor([0.5, 2.0, 1.5, 0.7])
    torch.save(model.state_dict(), "gated.pt")
    surgeon("relax", "gated.pt", "--group", "O3", "--task", "gated.py", "-o", "relaxed")
    surgeon("export", "relaxed", "-o", "clean", "--onnx", "--no-recalibrate", *QUICK)
    certificate = json.loads(Path("clean/certificate.json").read_text())
    assert certificate["grade"] == "same function"
    record = certificate["details"]["onnx"]
    assert record["inputs"] == ["x", "v"]
    assert record["deviation"] <= 1
    assert max(record["equivariance"].values()) <= 1
    assert record["tensors"] == 8
    clean = gated.Gated().eval()
    clean.load_state_dict(load_file("clean/model.safetensors"))
    session = onnxruntime.InferenceSession("clean/model.onnx")
    for size in (1, 2, 30):
        x, v = torch.randn(size, 8), torch.randn(size, 3)
        (found,) = session.run(None, {"x": x.numpy(), "v": v.numpy()})
        np.testing.assert_allclose(found, clean(x, v).detach().numpy(), rtol=1e-4, atol=1e-5)
    surgeon("verify", "clean", "--against", "gated.pt", "--task", "gated.py")
