"""A checkpoint of Lightning goes out as one, and Lightning's own loader gives the trained model back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.errors import CheckpointError
from surgeon.export.reopening import container_extra
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import load_task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-integrations")

pytestmark = pytest.mark.slow

TASK = """
import lightning.pytorch as pl
import torch
from tests.tiny import Net, TinyTask


class Lit(pl.LightningModule):
    def __init__(self, hidden=2):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(hidden)

    def on_load_checkpoint(self, checkpoint):
        if FLIPS:
            checkpoint["state_dict"]["net.second.weight"] *= -1

    def forward(self, scalars, vectors):
        return self.net(scalars, vectors)


class LitTask(TinyTask):
    def model(self):
        return Lit()

    def load_model(self, path):
        return Lit.load_from_checkpoint(path, map_location="cpu")


task = LitTask()
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flips", [False, True])
def test_lightning_opens_what_was_exported(tmp_path: Path, flips: bool) -> None:
    (tmp_path / "task.py").write_text(f"FLIPS = {flips}\n{TASK}")
    (tmp_path / "clean").mkdir()
    task: Any = load_task(tmp_path / "task.py").task
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    module = task.model()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "lit.ckpt")
    workspace = open_path(tmp_path / "lit.ckpt", OpenOptions(task=str(tmp_path / "task.py")))
    with torch.no_grad():
        workspace.model.net.first.weight.mul_(1.5)
    write = container_extra(workspace, workspace.model, workspace.checkpoint)
    if flips:
        with pytest.raises(CheckpointError, match=r"1 of the \d+ tensors that load_model\(\) of .*without --container"):
            write(tmp_path / "clean")
        return
    record = write(tmp_path / "clean")
    assert (record["opened_by"], record["bit_equal"]) == ("load_model() of the task", True)
    before, after = (torch.load(tmp_path / part / "lit.ckpt", weights_only=True) for part in ("", "clean"))
    assert before.keys() == after.keys()
    assert after["hyper_parameters"] == {"hidden": 2}
    assert torch.equal(after["state_dict"]["net.first.weight"], 1.5 * before["state_dict"]["net.first.weight"])
