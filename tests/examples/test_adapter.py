"""The example of an adapter in a package of its own: built from its folder, found by its entry point, complete."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.opening.open import open_path
from surgeon.opening.tasks import load_task
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from tests.commands import ROOT, Surgeon, files_in

pytest.importorskip("hatchling", reason="hatchling, which builds the example's package, is not installed: make setup")

EXAMPLE = ROOT / "examples" / "adapter"
MODULES = ("arrows", "arrows_surgeon")


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the package without a network and put it where Python finds it, as an installation would."""
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("site")
    (wheel,) = WheelBuilder(str(EXAMPLE)).build(directory=str(folder / "built"), versions=["standard"])
    zipfile.ZipFile(wheel).extractall(folder / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        yield folder / "site"
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def nothing_leaks(nothing_leaks: None, installed: Path) -> None:
    """``sys.path`` is watched with the package on it."""


def points(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 5, 3)
    positions, velocities = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    # particles on springs to their centre
    turned = positions - positions.mean(1, keepdim=True)
    return {"positions": positions, "velocities": velocities, "displacements": 0.5 * velocities - 0.1 * turned}


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return importlib.import_module("arrows").ArrowNet(channels=4, layers=1).double().eval()


def data_file(folder: Path) -> Path:
    path = folder / "springs.npz"
    np.savez(path, **{key: value.float().numpy() for key, value in points(20).items()})
    return path


class TestArrows(AdapterContract):
    adapter = "arrows_surgeon:adapter"
    libraries = ("arrows",)

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    def sample(self) -> Model:
        batch = points(3)
        return Model(
            network(),
            (batch["positions"], batch["velocities"]),
            Symmetry(
                parse_group("O3"),
                lambda g, *vectors: tuple(x @ g.T.to(x) for x in vectors),
                lambda g, output: output @ g.T.to(output),
            ),
        )

    def data(self) -> Path:
        path = self.tmp_path / "double.npz"
        np.savez(path, **{key: value.numpy() for key, value in points(20).items()})
        return path


def test_every_command_works_on_its_checkpoint_without_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrows: Any = importlib.import_module("arrows")
    monkeypatch.chdir(tmp_path)
    surgeon, data = Surgeon(tmp_path, capsys), data_file(tmp_path)
    arrows.save(network().float(), "springs.pt", name="springs")
    inspected = surgeon("inspect", "springs.pt")
    assert f"taking the task arrows:{data}" in inspected.out.replace("\n", "")
    found = surgeon("inspect", "springs.pt", "--json").data
    assert {site["adapter"] for site in found["plan"]["sites"]} == {"arrows"}
    assert {site["source"] for site in found["plan"]["sites"]} == {"both"}
    assert len(found["plan"]["sites"]) == 4
    assert found["equivariance_error"].keys() == {"identity", "inversion"}
    surgeon("relax", "springs.pt")
    surgeon("finetune", "springs-relaxed", "--epochs", "3", "--lr", "1e-2")
    before = files_in(tmp_path / "springs-relaxed")
    surgeon("export", "springs-run", "--container")
    assert files_in(tmp_path / "springs-relaxed") == before
    certificate = json.loads(Path("springs-clean/certificate.json").read_text())
    assert certificate["grade"] == "same function"
    assert certificate["metrics"]["stripped"]["loss"] < certificate["metrics"]["original"]["loss"]
    # the library opens what came out, and everything but the weights is as it was
    original, trained = (torch.load(path, weights_only=True) for path in ("springs.pt", "springs-clean/springs.pt"))
    assert {key: value for key, value in trained.items() if key != "weights"} == {"arrows_format": 1, "name": "springs"}
    assert list(trained["weights"]) == list(original["weights"])
    nets = arrows.load("springs-clean/springs.pt"), open_path("springs-clean/model.safetensors").model
    found, expected = (net(*(points(2)[key].float() for key in ("positions", "velocities"))).detach() for net in nets)
    assert torch.equal(found, expected)


def test_without_data_beside_it_a_task_has_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arrows: Any = importlib.import_module("arrows")
    monkeypatch.chdir(tmp_path)
    surgeon = Surgeon(tmp_path, capsys)
    arrows.save(network().float(), "lonely.pt")
    found = surgeon("inspect", "lonely.pt", "--json").data
    assert not any(site["verified"] for site in found["plan"]["sites"])
    surgeon("relax", "lonely.pt")
    told = surgeon("finetune", "lonely-relaxed", code=2).err
    assert "none is known: give `--task FILE`" in told.replace("\n", " ")
    data = data_file(tmp_path)
    assert len(list(load_task(f"arrows:{data}", {"batch_size": 4}).task.batches("train", 0))) == 3
    with pytest.raises(TaskError, match="the task of arrows cannot be called like this.*batchsize"):
        load_task(f"arrows:{data}", {"batchsize": 4})


def test_the_page_shows_the_adapter_as_it_is() -> None:
    page = (ROOT / "docs" / "families" / "adapter.md").read_text(encoding="utf-8")
    code = (EXAMPLE / "arrows_surgeon.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page
    assert (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8").split("\n\n")[2] in page
    assert len(code.splitlines()) < 80
