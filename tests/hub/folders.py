"""A relaxed folder, a run folder and a clean folder of the tiny network, made once per test module."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from surgeon.editing.insert import relax
from surgeon.files.relaxed import write_relaxed
from surgeon.finding.find import find
from surgeon.opening.description import relaxed_config
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.strip_and_certify import strip_and_certify
from surgeon.training.arms import arm_named
from surgeon.training.engine import Finetuner
from surgeon.training.runs import save_run
from surgeon.training.settings import FinetuneSettings
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.pt``, ``task.py``, ``relaxed/``, ``run/`` and ``clean/``; nothing in it is to be changed."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(tiny.__file__, folder / "task.py")
    torch.manual_seed(0)
    torch.save(tiny.Net().state_dict(), folder / "net.pt")
    make_relaxed(folder / "net.pt", folder / "relaxed", folder / "task.py")
    workspace = open_path(folder / "relaxed")
    settings = FinetuneSettings(epochs=2, learning_rate=1e-2, branch_factor=1.0)
    run = Finetuner(workspace.model, workspace.require_task().task, settings, arm_named("drop"), workspace.relaxation)
    run.run(on_save=lambda finetuner: save_run(folder / "run", finetuner, workspace))
    trained = open_path(folder / "run")
    original = trained.original()[1]
    write_clean(folder / "clean", *strip_and_certify(trained, "drop"), original)
    return folder


def make_relaxed(checkpoint: str | Path, folder: Path, task: str | Path) -> None:
    """Relax a checkpoint of the tiny network, local or on the Hub."""
    workspace = open_path(checkpoint, OpenOptions(task=str(task)))
    batch = next(iter(tiny.TinyTask().batches("validation", 0)))
    plan = find(workspace.model, "O3", batch, forward=tiny.TinyTask().forward)
    relaxation = relax(workspace.model, plan, dense=True, init_scale=0.5)
    config = relaxed_config(workspace, relaxation, penalty={"lambda": 0.01, "form": "gram", "scale": "relative"})
    write_relaxed(folder, workspace.model, config, workspace.checkpoint.metadata)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file by relative name."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
