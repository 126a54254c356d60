"""Hostile bundles in a process under an audit hook: no code, no connection, no file outside the target."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tests.campaigns.hostile import READ
from tests.faults.bundles import CORPUS, hostile, packed
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


@pytest.mark.slow
def test_a_collection_is_read_under_every_name_and_refused(tmp_path: Path) -> None:
    folder = tmp_path / "collection"
    folder.mkdir()
    (folder / "a.pickle").write_bytes(pickle.dumps(hostile()))
    packed(folder / "b")
    (folder / "c").write_bytes(b"\x80\x04" + bytes(20))
    ended = forked(tmp_path, "collection", program="tests.campaigns.hostile")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = f"3 files under {len(READ)} names: {3 * len(READ)} times refused in a sentence, 0 times read as data"
    assert told in ended.stdout
    missing = forked(tmp_path, "nowhere", program="tests.campaigns.hostile")
    assert missing.returncode == 2
    assert missing.stderr == "error: expected a folder with files to read, got 'nowhere': give one as `DIR=...`\n"
