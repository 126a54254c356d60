"""A network whose code changed after it was relaxed is refused; other data and versions are no change of the code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from surgeon.errors import CheckpointError
from surgeon.opening.description import check_code
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.strip_and_certify import strip_and_certify
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import comparison_of
from tests.commands import Surgeon
from tests.opening.test_workspace import make_relaxed

CHANGED = ("torch.tanh(1 + gates)", "torch.tanh(2 + gates)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = Surgeon.folder(tmp_path, monkeypatch)
    return make_relaxed(work, options=OpenOptions(task="task.py"))


def opened(folder: Path, edit: tuple[str, str] | None = None) -> Workspace:
    task = folder.parent / "task.py"
    if edit is not None:
        assert edit[0] in task.read_text()
        task.write_text(task.read_text().replace(*edit))
    return open_path(folder, OpenOptions(task=str(task), accept_changed_task=True))


def test_the_same_source_is_recognised(folder: Path) -> None:
    workspace = opened(folder)
    assert "computes the graph that was recorded" in check_code(workspace)
    comparison_of(workspace, FinetuneSettings())
    _, certificate = strip_and_certify(workspace, "drop", MeasureSettings(1, 1), split=None)
    assert "computes the graph that was recorded" in certificate.details["source"]


def test_another_source_is_refused(folder: Path) -> None:
    workspace = opened(folder, CHANGED)
    with pytest.raises(CheckpointError, match="its code now computes another graph"):
        check_code(workspace)
    with pytest.raises(CheckpointError, match="its code now computes another graph"):
        comparison_of(workspace, FinetuneSettings())
    with pytest.raises(CheckpointError, match="restore the model's source, or relax again"):
        strip_and_certify(workspace, "drop", MeasureSettings(1, 1))


def test_a_run_is_refused_before_it_is_touched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(folder, CHANGED)
    surgeon = Surgeon(folder.parent, capsys)
    arguments = ("finetune", str(folder), "--task", "task.py", "--accept-changed-task", "--epochs", "1", "-o", "run")
    assert "another graph" in surgeon(*arguments, code=2).err
    assert not Path("run").exists()


def test_other_data_are_no_other_source(folder: Path) -> None:
    workspace = opened(folder, ("1000 * SEEDS", "1001 * SEEDS"))
    assert "with other data" in check_code(workspace)


def test_other_versions_and_no_record_are_said(folder: Path) -> None:
    workspace = opened(folder)
    assert workspace.files is not None
    assert workspace.files.config.graph is not None

    def told(graph: object) -> str:
        config = dataclasses.replace(workspace.files.config, graph=graph)
        return check_code(dataclasses.replace(workspace, files=dataclasses.replace(workspace.files, config=config)))

    assert "with other versions of libraries" in told({**workspace.files.config.graph, "versions": {"torch": "0.1"}})
    assert "was not compared: no task was known" in told(None)
