"""What cannot be exported is named: the operator, the module it is in, the line it is called from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from surgeon.errors import CheckFailedError, UsageError
from surgeon.export.convert import to_onnx
from surgeon.export.sample import sample_of
from tests.export.failing import Failing, RowsTask

SOURCE = Path(__file__).with_name("failing.py")
SAMPLE = sample_of(RowsTask(), torch.float32)


@pytest.mark.parametrize(
    ("kind", "words", "code"),
    [
        ("decision", "depends on values that are only known when it runs", "x.sum() > 0"),
        ("count", "depends on values that are only known when it runs", "x.abs().max().item()"),
        ("operator", "the operator aten::_linalg_svd .* has no counterpart in ONNX", "torch.linalg.svd"),
        ("custom operator", "the operator surgeon_tests::opaque .* cannot be traced", "surgeon_tests.opaque"),
        ("mistake", "must match the size of tensor b", "torch.ones(4)"),
    ],
)
def test_the_operation_its_module_and_its_line_are_named(
    kind: str, words: str, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    line = next(number for number, text in enumerate(SOURCE.read_text().splitlines(), start=1) if code in text)
    with pytest.raises(CheckFailedError) as caught:
        to_onnx(Failing(kind), RowsTask(), SAMPLE)
    message = str(caught.value)
    assert re.search(words, message), message
    assert f"in the module blocks.1 (line {line} of {SOURCE}, in forward)" in message
    assert message.startswith("Failing cannot be exported")
    assert "\n" not in message
    assert len(message) < 500
    assert capfd.readouterr() == ("", "")


def test_a_size_that_is_fixed_is_named() -> None:
    with pytest.raises(CheckFailedError, match="Failing cannot be exported: .* axis 0 of rows the fixed size"):
        to_onnx(Failing("one size"), RowsTask(), SAMPLE)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"ONNX needs the package {package}: .*pip install {package}"):
        to_onnx(Failing("nothing"), RowsTask(), SAMPLE)
