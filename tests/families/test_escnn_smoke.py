"""The smoke example's exactly equivariant network, from its shipped file to a clean file and to plain torch."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from tests.commands import Surgeon
from tests.modules import importable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "smoke"


@pytest.fixture
def steerable() -> Iterator[Any]:
    """Import the example's task file, for one test only: other folders have a task.py too."""
    with importable(EXAMPLE):
        yield import_module("steerable")


def test_the_shipped_network_goes_from_its_file_to_a_clean_file(
    steerable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    command = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)
    for name in ("data.py", "task.py", "steerable.py", "steerable.safetensors", "smoke_rotation.npz"):
        shutil.copy(EXAMPLE / name, name)
    command("relax", "steerable.safetensors", "--group", "C4", "--task", "steerable.py")
    plan = json.loads(Path("steerable-relaxed/surgeon_config.json").read_text())["plan"]
    assert [site["name"] for site in plan["sites"]] == ["body.0", "body.2", "body.4"]
    assert {site["source"] for site in plan["sites"]} == {"both"}
    command("finetune", "steerable-relaxed", "--epochs", "2", "--lr", "1e-3")
    report = command("export", "steerable-run", "--json").data["certificate"]
    assert report["grade"] == "same function"
    assert all(report["checks"].values())
    assert report["metrics"]["stripped"]["rmse"] < report["metrics"]["original"]["rmse"]
    assert report["equivariance"]["stripped"]["float64"]["rotation"]["maximum"] < 1e-6
    assert report["equivariance"]["stripped"]["float64"]["other elements"]["maximum"] < 1e-6
    assert report["equivariance"]["relaxed, theta 1"]["float32"]["rotation"]["maximum"] > 1e-4
    task = steerable.make_task()
    net, batch = task.model(), next(task.batches("test", 0))
    net.load_state_dict(load_file("steerable-clean/model.safetensors"), strict=True)
    expected = net.eval()(batch["frames"]).detach()
    plain = net.body.export()
    assert not [each for each in plain.modules() if type(each).__module__.startswith("escnn")]

    def predict(frames: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = plain(frames.flip(-2)).flip(-2).detach()
        return frames[:, -2:] + change

    assert relative_difference(predict(batch["frames"]), expected) < 1e-6
    quarter = parse_group("C4").elements[0]
    assert relative_difference(predict(task.act(quarter, batch)["frames"]), task.act_output(quarter, expected)) < 1e-6
