"""Importing what a user names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from surgeon.errors import TaskError, UsageError
from surgeon.support.imports import (
    call_with,
    close_names,
    import_attribute,
    import_onnxruntime,
    importable,
    one_line,
    unchanged_environment,
)


def test_a_folder_is_importable_only_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "named_by_user_a.py").write_text("def build():\n    return 7\n")
    before = list(sys.path)
    with importable(tmp_path):
        assert import_attribute("named_by_user_a:build", "a factory", UsageError)() == 7
    assert sys.path == before


def test_a_dotted_attribute() -> None:
    assert import_attribute("os:path.join", "a function", UsageError)("a", "b") in ("a/b", "a\\b")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("json", "expected a factory as `module:function`, got 'json'"),
        (":dumps", "expected a factory as"),
        ("no_such_module_x:f", "there is no module 'no_such_module_x'"),
        ("json:dump_s", "it has dumps, dump"),
    ],
)
def test_errors_name_what_is_wrong(spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        import_attribute(spec, "a factory", UsageError)


def test_a_module_that_fails_while_importing(tmp_path: Path) -> None:
    (tmp_path / "named_by_user_b.py").write_text("1 / 0\n")
    with importable(tmp_path), pytest.raises(TaskError, match="failed with ZeroDivisionError"):
        import_attribute("named_by_user_b:f", "a task", TaskError)


def build(width: int, depth: int = 2) -> tuple[int, int]:
    if width < 0:
        raise ValueError("width is\nnegative")
    return width, depth


def test_arguments_are_checked_and_the_accepted_ones_listed() -> None:
    assert call_with(build, {"width": 3}, "build", UsageError) == (3, 2)
    with pytest.raises(UsageError, match=r"it accepts width: 'int', depth: 'int' = 2|it accepts width: int, depth"):
        call_with(build, {"witdh": 3}, "build", UsageError)


def test_a_failing_call_says_where() -> None:
    with pytest.raises(
        UsageError, match=r"build failed at line \d+ of .*test_imports.py with ValueError: width is neg"
    ):
        call_with(build, {"width": -1}, "build", UsageError)


def test_messages_are_one_line_and_names_are_near() -> None:
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(EOFError()) == "EOFError"
    assert close_names("modle.pt", ["a.txt", "model.pt"]) == "model.pt"
    assert close_names("zzz", ["b", "c"]) == "b, c"
    assert close_names("zzz", []) == "nothing"


def test_the_environment_is_put_back() -> None:
    os.environ["SURGEON_KEPT"] = "before"
    before = dict(os.environ)
    with unchanged_environment():
        os.environ["SURGEON_KEPT"] = "changed"
        os.environ["SURGEON_NEW"] = "1"
    assert dict(os.environ) == before
    with unchanged_environment():
        del os.environ["SURGEON_KEPT"]
    assert os.environ.pop("SURGEON_KEPT") == "before"


def test_onnx_runtime_reports_nothing_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert import_onnxruntime().__name__ == "onnxruntime"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
