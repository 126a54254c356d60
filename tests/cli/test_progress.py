"""The progress line on a narrow terminal."""

from __future__ import annotations

import re
import sys

import pytest

from surgeon.training.progress import StepEvent
from surgeon_cli.progress import training_bar
from surgeon_cli.screen import say

STEP = StepEvent(12, 120, 3, 0.53, 1.759e-2, 1.66, {"forces_rmse": 0.06214}, {"forces_rmse": 0.0712})


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


def test_at_80_columns_bar_epoch_step_and_time_left_remain(capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_said_beside_the_bar_stays(
    shared: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the bar's terminal the line goes through the bar, which is drawn below it; elsewhere it goes by itself."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: shared)
    with training_bar(quiet=False):
        say("opened a network")
    told = capsys.readouterr()
    assert "opened a network" in (told.err if shared else told.out)
    assert "opened a network" not in (told.out if shared else told.err)
