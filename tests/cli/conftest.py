"""Run the command line inside the test's process, in a folder with a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Surgeon


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with ``net.pt`` and ``task.py`` in it."""
    return Surgeon.folder(tmp_path, monkeypatch)


@pytest.fixture
def surgeon(work: Path, capsys: pytest.CaptureFixture[str]) -> Surgeon:
    return Surgeon(work, capsys)
