"""What ``make test-e3nn-suite`` does to each layer, and what it says where e3nn's sources are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from e3nn import o3
from e3nn.util.test import assert_equivariant

from surgeon.plan import CHILD
from tests.campaigns.e3nn_suite import Results, complaint, every_layer_relaxed, verdict

pytestmark = pytest.mark.e3nn


def test_every_layer_is_relaxed_and_none_stays_so() -> None:
    with every_layer_relaxed() as layers:
        mixing, product, empty = (
            o3.Linear("2x0e + 2x1o", "2x1o + 0e"),
            o3.FullyConnectedTensorProduct("1o", "0e + 1o", "1o + 1e"),
            o3.Linear("1o", "0e"),
        )
        assert [CHILD in layer._modules for layer in (mixing, product, empty)] == [True, True, False]
        assert_equivariant(mixing)
        with torch.no_grad():
            compiled = torch.compile(mixing)
        assert CHILD not in mixing._modules
        assert compiled(torch.randn(3, 8)).shape == (3, 7)
        other = o3.Linear("2x0e + 2x1o", "2x1o + 0e")
        other.load_state_dict(mixing.state_dict())
    assert CHILD not in product._modules
    assert layers.counts == {"built": 4, "relaxed": 3, "stripped": 3}
    assert CHILD not in o3.Linear("1o", "1o")._modules


def test_only_what_passes_with_e3nn_alone_counts(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results()
    assert verdict(0, results, list) == 0
    results.passed, results.failed = 5, {"a": None, "b": None}
    assert verdict(1, results, lambda: ["b", "a"]) == 0
    assert verdict(1, results, lambda: ["b"]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "fails with branches only: a",
        "fails with e3nn alone, too: b",
        "5 passed, 2 fail with branches, 1 of these with e3nn alone, too",
    ]
    assert verdict(2, results, list) == 2  # interrupted, or nothing could be collected


def test_sources_that_are_missing_or_others_are_said(tmp_path: Path) -> None:
    assert "make test-e3nn-suite E3NN=folder; got none" in complaint(None)
    for name, text in (("pyproject.toml", ""), ("tests/conftest.py", ""), ("e3nn/__init__.py", '__version__ = "0.1"')):
        assert f"has no {name}" in complaint(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert complaint(tmp_path).endswith("are of version 0.1")
