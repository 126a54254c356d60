"""Files of nequip before 0.7, whose networks later versions do not build: said in one sentence, with the way out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError, ModelNotFoundError
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from tests.families.old_files.write_nequip import predicted

FOLDER = Path(__file__).parent / "old_files"
RECORDS: dict[str, Any] = json.loads((FOLDER / "nequip.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    with tarfile.open(FOLDER / "nequip.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}


@pytest.mark.parametrize("name", RECORDS)
def test_a_state_dict_needs_its_version(name: str, files: Path) -> None:
    path = files / f"{name}.pth"
    assert sum(tensor.numel() for tensor in torch.load(path).values()) > 500
    words = (
        r"state dict of NequIP, without settings: .* up to 0\.6 are not built by later ones.*task file with `model\(\)`"
    )
    with pytest.raises(ModelNotFoundError, match=words):
        open_path(path)


@pytest.mark.parametrize("name", RECORDS)
def test_a_deployed_potential_is_refused_as_code(name: str, files: Path) -> None:
    path = files / f"{name}-deployed.pth"
    with torch.jit.fuser("fuser0"):
        found = tensors(predicted(torch.jit.load(path)))
    assert relative_difference(found, tensors(RECORDS[name]["predicted"])) < 1e-5  # it is what that version wrote
    with pytest.raises(
        CheckpointError, match=r"-deployed.pth' is a TorchScript archive.*give the checkpoint that it was"
    ):
        open_path(path, OpenOptions(trust_pickle=True))
