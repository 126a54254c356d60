"""Hostile bundles in a process under an audit hook: no code, no connection, no file outside the target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.bundles import CORPUS
from tests.processes import forked


@pytest.mark.slow
def test_a_hostile_bundle_brings_nothing_about(tmp_path: Path) -> None:
    ended = forked(tmp_path, program="tests.faults.bundles")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.pop("watch")["seen"] == ["os.system (b'true',)"]
    assert found.keys() == CORPUS.keys()
    assert {name: each["seen"] for name, each in found.items() if each["seen"] or each["pwned"]} == {}
    unclear = {name: said for name, each in found.items() for said in each["said"] if "Traceback" in said}
    assert unclear == {}
