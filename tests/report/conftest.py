"""What reports are made of: a run, a comparison and a clean folder of a tiny network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from surgeon_cli.main import main
from tests.commands import Surgeon


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a comparison and a clean folder."""
    with pytest.MonkeyPatch.context() as patch:
        folder = Surgeon.folder(tmp_path_factory.mktemp("report"), patch)
        commands = (
            "relax net.pt",
            "finetune net-relaxed --epochs 10 --lr 1e-2",
            "finetune net-relaxed --epochs 4 --lr 1e-1 --seeds 2 --compare plain,drop --keep none",
            "strip net-run --elements 1 --batches 1",
        )
        for command in commands:
            with pytest.raises(SystemExit) as ended:
                main(command.split())
            assert ended.value.code == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "made"))
