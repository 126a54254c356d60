"""A steerable network of every kind goes from its file, over branches, to a file that escnn opens."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgeon
from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.opening.options import OpenOptions
from tests.commands import QUICK, Surgeon
from tests.families import escnn_kinds, escnn_task
from tests.families.escnn_kinds import KINDS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

# escnn computes its bases in float32
ROUNDING = 1e-5

WITH_ONNX = ("d4-images", "so3-volumes")

# so2-volumes differs from c4-volumes in its fields alone, and these are the planar ones
FROM_FILE = [kind for kind in KINDS if kind != "so2-volumes"]


@pytest.mark.parametrize("kind", FROM_FILE)
def test_from_file_to_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, group = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys), KINDS[kind][0]
    shutil.copy(escnn_kinds.__file__, "kinds.py")
    torch.manual_seed(0)
    torch.save(escnn_kinds.make_task(kind).model().state_dict(), "net.pt")
    given = ("--task", "kinds.py", "--task-args", json.dumps({"kind": kind}))
    plan = command("inspect", "net.pt", "--group", group, *given, "--plan", "plan.json", "--json").data["plan"]
    assert [site["name"] for site in plan["sites"]] == ["first", "second"]
    trust = ("--trust-remote-code",) if ":" in group else ()
    command("relax", "net.pt", *given, "--plan", "plan.json", "--group", group, *trust, "-o", "relaxed")
    command("finetune", "relaxed", "--epochs", "2", "--lr", "1e-2", "-o", "run", *trust)
    onnx = ("--onnx",) if kind in WITH_ONNX else ()
    _require_certified(command("export", "run", "-o", "clean", *onnx, *trust, "--json").data["certificate"])
    _require_opened_by_escnn(kind)
    if onnx:
        _require_onnx(kind)
        command("verify", "clean")
    command("verify", "clean", "--against", "net.pt", *given)


def _require_certified(report: dict[str, Any]) -> None:
    assert report["grade"] == "same function"
    assert all(report["checks"].values())
    assert report["checks"]["as equivariant as the original"]
    assert report["metrics"]["stripped"]["loss"] != report["metrics"]["original"]["loss"]
    for dtypes in (report["equivariance"]["original"], report["equivariance"]["stripped"]):
        assert all(part["maximum"] < ROUNDING for part in dtypes["float64"].values())


def _clean(kind: str) -> tuple[Any, Tensor, Tensor]:
    """Return escnn's own network with the clean weights, in eval mode; a batch, and what it predicts for it."""
    from safetensors.torch import load_file

    task = escnn_kinds.make_task(kind)
    net, batch = task.model(), next(task.batches("test", 0))
    net.load_state_dict(load_file("clean/model.safetensors"), strict=True)
    return net, batch, net.eval()(batch).detach()


def _require_opened_by_escnn(kind: str) -> None:
    """Its prediction is that of our model; so is that of the layers of plain torch which escnn exports."""
    net, batch, found = _clean(kind)
    opened = surgeon.open_path("run", OpenOptions(trust_remote_code=True))
    assert opened.relaxation is not None
    with opened.relaxation.clean() as ours:
        expected = ours.eval()(batch).detach()
    assert relative_difference(found, expected) < torch.finfo(torch.float32).eps
    original = escnn_kinds.make_task(kind).model()
    original.load_state_dict(torch.load("net.pt", weights_only=True))
    assert relative_difference(found, original.eval()(batch).detach()) > 1e-3
    plain = net.plain()
    assert not [each for each in plain.modules() if type(each).__module__.startswith("escnn")]
    assert relative_difference(plain(batch).detach(), found) < ROUNDING
    for g in parse_group(KINDS[kind][0]).sample(2, torch.Generator().manual_seed(0)):
        moved = escnn_kinds.make_task(kind).act(g, batch)
        assert relative_difference(plain(moved).detach(), found) < ROUNDING


def _require_onnx(kind: str) -> None:
    import onnxruntime

    _, batch, expected = _clean(kind)
    (found,) = onnxruntime.InferenceSession("clean/model.onnx").run(["scores"], {"features": batch.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_what_eval_mode_keeps_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state dict saved in eval mode opens, as escnn's users save it; the result has its keys."""
    command, given = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys), ("--task", "task.py")
    Path("task.py").write_text(Path(escnn_task.__file__).read_text().replace("Images().train()", "Images()"))
    torch.manual_seed(0)
    net = escnn_task.Images().eval()
    torch.save({"model": net.state_dict()}, "net.pt")
    stale = {**net.state_dict(), "first.filter": 2 * net.first.filter}  # as after load_state_dict in eval mode
    torch.save(stale, "stale.pt")
    for name in ("net", "stale"):
        plan = command("inspect", f"{name}.pt", "--group", "C4", *given, "--json").data["plan"]
        (note,) = (note for note in plan["notes"] if "eval mode" in note)
        assert "4 (first.expanded_bias, first.filter, second.expanded_bias, ...) of its tensors are what" in note
        assert ("not those of its weights" in note) == (name == "stale")
    told = command("finetune", "net.pt", *given, "--arm", "plain", "--epochs", "1", "--lr", "1e-2", "-o", "run").err
    assert f"note: {note.split('and those')[0]}" in told
    command("export", "run", "-o", "clean", "--container", *QUICK)
    found = torch.load("clean/net.pt", weights_only=True)["model"]
    assert list(found) == list(net.state_dict())
    assert not torch.equal(found["first.weights"], net.first.weights)
    again = escnn_task.Images()
    again.load_state_dict(found)  # strictly: a new layer has these buffers, too
    again.train().eval()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in found.items())
    command("verify", "clean", "--against", "net.pt", *given)
