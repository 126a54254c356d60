"""A ``.model`` file of MACE goes out as one, and MACE's own calculator gives the trained model back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckFailedError
from surgeon.export.reopening import container_extra, reopen
from surgeon.files.reading import open_checkpoint
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import LoadedTask
from surgeon.opening.workspace import Workspace
from tests.families.cases import FamilyCase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")
    import ase.io

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Energies:
    """Random molecules, and the model that MACE's calculator makes of a file."""

    def __init__(self, case: FamilyCase, factor: float = 1.0) -> None:
        self.case, self.factor = case, factor

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        from tests.families.mace_models import molecules

        yield molecules(seed)
        yield molecules(seed + 1)

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        return self.case.forward(model, batch)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        return outputs["energy"].square().mean()

    def load_model(self, path: Path) -> nn.Module:
        from mace.calculators import MACECalculator

        model: nn.Module = MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64").models[0]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.factor)
        return model


def opened(folder: Path, scripted: bool, factor: float = 1.0) -> Workspace:
    """A potential as MACE saves it, opened with trust."""
    from tests.families.mace_models import potential

    case = potential(scripted)
    torch.save(case.module, folder / "potential.model")
    workspace = open_path(folder / "potential.model", OpenOptions(trust_pickle=True))
    task: Any = Energies(case, factor)
    workspace.task = LoadedTask(task, None, "")
    return workspace


def trained(workspace: Workspace) -> nn.Module:
    """The model with other weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in workspace.model.parameters():
            parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    return workspace.model


@pytest.mark.parametrize("scripted", [True, False], ids=["scripted", "eager"])
def test_the_calculator_of_mace_opens_what_was_exported(
    tmp_path: Path, scripted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = opened(tmp_path, scripted)
    model, original = trained(workspace), workspace.checkpoint
    (tmp_path / "clean").mkdir()
    record = container_extra(workspace, model, original)(tmp_path / "clean")
    assert record["opened_by"] == "load_model() of the task"
    assert record["deviation"] <= 1
    path = tmp_path / "clean/potential.model"
    assert type(torch.load(path, weights_only=False)).__name__ == "ScaleShiftMACE"
    weights = open_checkpoint(path, trust_pickle=True).tensors
    assert any(not torch.equal(value, original.tensors[key]) for key, value in weights.items())
    workspace.task = None
    assert reopen(path, workspace)[1] == "the loader of the adapter mace"
    kinds: Any = model.atomic_numbers
    positions = 2.0 * torch.arange(3 * len(kinds)).reshape(-1, 3).cos()
    ase.io.write(tmp_path / "clean/structure.xyz", ase.Atoms(kinds.tolist(), positions.numpy()))
    monkeypatch.chdir(tmp_path / "clean")
    capsys.readouterr()
    exec(record["usage"], {})  # noqa: S102
    assert "[" in capsys.readouterr().out


def test_a_loader_that_scales_weights_is_refused(tmp_path: Path) -> None:
    workspace = opened(tmp_path, True, factor=1.001)
    model = trained(workspace)
    (tmp_path / "clean").mkdir()
    with pytest.raises(CheckFailedError, match="does not give the trained model back"):
        container_extra(workspace, model, workspace.checkpoint)(tmp_path / "clean")
