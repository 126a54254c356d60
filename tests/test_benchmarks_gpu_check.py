"""The script for GPUs on a machine without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch


def test_without_a_gpu_the_script_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.import_module("gpu_check"), "devices", lambda _: pytest.fail("went on"))
    assert importlib.import_module("gpu_check").main() == 2
    assert capsys.readouterr().err == "no GPU: torch finds none here; --device cpu tries the script\n"
