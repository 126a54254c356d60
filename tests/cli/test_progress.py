"""The progress line on a narrow terminal."""

from __future__ import annotations

import re

import pytest

from surgeon.training.progress import StepEvent
from surgeon_cli.progress import training_bar

STEP = StepEvent(12, 120, 3, 0.53, 1.759e-2, 1.66, {"forces_rmse": 0.06214}, {"forces_rmse": 0.0712})


def test_at_80_columns_bar_epoch_step_and_time_left_remain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    with training_bar(quiet=False) as bar:
        assert bar is not None
        bar.begin("a comparison whose title takes more room than there is on a line of the terminal", "forces_rmse")
        bar.step(STEP)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    line = next(line for line in re.split(r"[\r\n]+", shown) if "12/120" in line)
    assert len(line) == 80
    assert re.search(r"^a comparison.*… ━+.* epoch 3 +12/120 +[-\d]:\S\S:\S\S$", line)
    assert "theta 0.53  loss 1.759e-02" in shown
    assert "clean 0.06214" in shown
