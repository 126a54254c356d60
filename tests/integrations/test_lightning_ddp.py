"""Two processes train what one trains on batches of twice the size."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.integrations.loops import batches, largest_difference, network, plain_loop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-integrations")

ROOT = Path(__file__).parents[2]
EXACT = 1e-9


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integrations.ddp", str(tmp_path), "0.5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert largest_difference(one, other) == 0
    assert largest_difference(one, plain_loop(network(), batches(12), weight=0.5)) < EXACT
    assert largest_difference(one, plain_loop(network(), batches(12), weight=0.0)) > 1e3 * EXACT
