"""A steerable network of escnn goes from a checkpoint to ONNX; the file holds the filters that eval mode expands."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from surgeon.files.seals import seal_folder
from tests.commands import Surgeon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_a_steerable_network_becomes_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime
    from safetensors.torch import load_file, save_file

    from tests.families import escnn_task

    surgeon = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)
    shutil.copy(escnn_task.__file__, "images.py")
    torch.save(escnn_task.task.model().state_dict(), "images.pt")
    surgeon("relax", "images.pt", "--group", "C4", "--task", "images.py", "-o", "relaxed")
    tensors = load_file("relaxed/model.safetensors")
    parameters = dict(escnn_task.task.model().named_parameters())
    save_file({k: 1.1 * v if k in parameters else v for k, v in tensors.items()}, "relaxed/model.safetensors")
    seal_folder(Path("relaxed"))
    surgeon("export", "relaxed", "-o", "clean", "--onnx")
    certificate = json.loads(Path("clean/certificate.json").read_text())
    assert certificate["grade"] == "same function"
    record = certificate["details"]["onnx"]
    assert record["deviation"] <= 1
    assert max(record["equivariance"].values()) <= 1
    assert set(record["computed_in_eval_mode"]) == {
        f"{layer}.{tensor}" for layer in ("first", "second") for tensor in ("filter", "expanded_bias")
    }
    clean = escnn_task.task.model()
    clean.load_state_dict(load_file("clean/model.safetensors"))
    clean.eval()
    session = onnxruntime.InferenceSession("clean/model.onnx")
    for size in (1, 2, 20):
        image = torch.randn(size, 2, 9, 9)
        (found,) = session.run(["scores"], {"image": image.numpy()})
        np.testing.assert_allclose(found, clean(image).detach().numpy(), rtol=1e-4, atol=1e-5)
    surgeon("verify", "clean", "--against", "images.pt", "--task", "images.py")
