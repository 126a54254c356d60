"""Clean folders: exactly the original's form, loadable by torch alone, and never without a certificate that holds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.errors import CheckFailedError, SurgeonError
from surgeon.export.reopening import write_beside
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import HASHING, canonical_digest
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import write_tensors
from surgeon.opening.models import find_model
from surgeon.opening.options import OpenOptions
from surgeon.plan import Certificate
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.verify import verify_clean
from tests.commands import Surgeon
from tests.opening.test_computed_buffers import Cached
from tests.tiny import Net

GOOD = Certificate({"shapes": True})


def saved(folder: Path, name: str, net: nn.Module) -> Checkpoint:
    (folder / "in").mkdir()
    (folder / "in" / "config.json").write_text('{"a":  1}')
    path = folder / "in" / name
    if name.endswith(".safetensors"):
        write_tensors(path, net.state_dict(), {"format": "pt", "origin": "here"})
    else:
        torch.save({"epoch": 3, "module": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    return open_checkpoint(path)


def beside(net: nn.Module, original: Checkpoint) -> dict[str, Callable[[Path], Any]]:
    """The original container, not opened again."""
    return {"copy": lambda folder: write_beside(folder, net, original).name}


@pytest.mark.parametrize("name", ["net.safetensors", "model.safetensors", "net.ckpt"])
def test_a_clean_folder(tmp_path: Path, name: str) -> None:
    original, net = saved(tmp_path, name, nn.Linear(2, 3)), nn.Linear(2, 3)
    files = write_clean(tmp_path / "out", net, GOOD, original, extras=beside(net, original))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert (tmp_path / "out" / "config.json").read_bytes() == b'{"a":  1}'
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["passed"] is True
    clean = open_checkpoint(tmp_path / "out" / "model.safetensors")
    copy = open_checkpoint(tmp_path / "out" / ("original-model.safetensors" if name == "model.safetensors" else name))
    for key, value in net.state_dict().items():
        assert torch.equal(clean.tensors[key], value)
        assert torch.equal(copy.tensors[key], value)
    assert (copy.container, copy.prefix, copy.extras) == (original.container, original.prefix, original.extras)
    assert clean.metadata == (original.metadata or {"format": "pt"})


@pytest.mark.parametrize("registered", [True, False])
def test_how_to_build_the_model_is_kept_if_a_file_may_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    monkeypatch.setattr(
        "surgeon.proof.clean_folder.is_registered", lambda factory: registered and factory == "torch.nn:Linear"
    )
    statement = {"factory": "torch.nn:Linear", "args": {"in_features": 2, "out_features": 3}}
    original = saved(tmp_path, "net.safetensors", nn.Linear(2, 3))
    files = write_clean(tmp_path / "out", nn.Linear(2, 3), GOOD, original, statement=statement)
    assert ("model.safetensors.model.json" in files) == registered
    if registered:
        opened = open_checkpoint(tmp_path / "out" / "model.safetensors")
        assert isinstance(find_model(opened, OpenOptions(trust_remote_code=True)).model, nn.Linear)


def test_a_certificate_that_does_not_hold_is_refused(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    bad = Certificate({"shapes": True, "dtypes": False}, ("dtype of weight: expected a, got b",))
    with pytest.raises(CheckFailedError, match=r"\(dtypes\): dtype of weight.*nothing was written"):
        write_clean(tmp_path / "out", net, bad, saved(tmp_path, "net.ckpt", net))
    assert not (tmp_path / "out").exists()


ALONE = """
import sys
for name in ("surgeon", "surgeon_adapters", "surgeon_cli"):
    sys.modules[name] = None  # as if it were not installed
import torch
from safetensors.torch import load_file
from nets import Net
net = Net()
print(net.load_state_dict(load_file("net-clean/model.safetensors"), strict=True))
net.load_state_dict(torch.load("net-clean/net.pt", weights_only=True), strict=True)
try:
    import surgeon
except ImportError:
    print("alone")
"""


@pytest.mark.slow
def test_the_exported_weights_load_where_surgeon_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surgeon = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)
    surgeon.once("relax", "net.pt")
    surgeon("export", "net-relaxed", "--container")
    (surgeon.path / "task.py").rename(surgeon.path / "nets.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=surgeon.path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["<All keys matched successfully>", "alone"], done.stderr


ROUTES: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], nn.Module]]] = {
    "module": (lambda net: net, lambda content: content),
    "nested module": (lambda net: {"epoch": 3, "model": net}, lambda content: content["model"]),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_pickled_module_goes_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], route: str
) -> None:
    surgeon = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)
    content_of, module_of = ROUTES[route]
    net = Net()
    torch.save(content_of(net), "net.pt")
    without_model = Path("task.py").read_text().replace("def model(self)", "def unused(self)")
    Path("data.py").write_text(without_model)
    Path("task.py").unlink()
    surgeon("relax", "net.pt", "--task", "data.py", "--trust-pickle")
    surgeon("finetune", "net-relaxed", "--trust-pickle", "--epochs", "2", "--lr", "1e-2")
    surgeon("export", "net-run", "--trust-pickle", "--container")
    exported = module_of(torch.load("net-clean/net.pt", weights_only=False))
    assert isinstance(exported, Net)
    weights = open_checkpoint("net-clean/model.safetensors").tensors
    assert all(torch.equal(value, weights[key]) for key, value in exported.state_dict().items())
    assert not torch.equal(exported.first.weight, net.first.weight)
    assert "surgeon" not in str(Path("net-clean/net.pt").read_bytes())


def test_extra_files_are_hashed_and_what_their_writer_says_is_kept(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "parts").mkdir()
        (folder / "parts" / "more.bin").write_bytes(b"more")
        return {"opset": 18}

    original, net = saved(tmp_path, "net.ckpt", nn.Linear(2, 3)), nn.Linear(2, 3)
    extras = {**beside(net, original), "more": write}
    files = write_clean(tmp_path / "out", net, GOOD, original, extras=extras)
    data = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert data["details"]["more"] == {"opset": 18}
    assert data["files"]["parts/more.bin"] == hashlib.sha256(b"more").hexdigest()
    assert {name.split("/")[0] for name in data["files"]} == set(files) - {"README.md", *HASHING}
    assert data["sha256"] == canonical_digest(data)
    assert data["details"]["original"] == {"file": "net.ckpt", "sha256": original.sha256, "entry": "module"}


def test_a_tensor_that_eval_mode_keeps_is_one_of_those_that_are_counted(tmp_path: Path) -> None:
    net = nn.Sequential(Cached())
    original = saved(tmp_path, "net.ckpt", net.eval())
    write_clean(tmp_path / "out", net.train(), Certificate({"shapes": True}, details={"tensors": 1}), original)
    verification = verify_clean(tmp_path / "out")
    assert verification.holds, verification.differences
    clean = open_checkpoint(tmp_path / "out" / "model.safetensors")
    assert clean.tensors.keys() == original.tensors.keys() == {"0.weight", "0.square"}


def test_an_extra_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise SurgeonError("no such operator")

    original = saved(tmp_path, "net.ckpt", nn.Linear(2, 3))
    with pytest.raises(SurgeonError, match="no such operator"):
        write_clean(tmp_path / "out", nn.Linear(2, 3), GOOD, original, extras={"more": fail})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
