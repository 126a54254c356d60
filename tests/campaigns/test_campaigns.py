"""Slices of the campaigns, what once crashed, and that a campaign notices what it is there for."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import CheckpointError
from surgeon.files import atomic
from tests.campaigns import faults, fuzz, page
from tests.campaigns.crashers import CRASHERS, crashing
from tests.campaigns.readers import READERS, digest
from tests.campaigns.work import furnish, here

# Python 3.12 warns of every fork beside threads; those of torch do nothing here.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("campaign") / "work"
    folder.mkdir()
    with here(folder):
        furnish(folder)
    return folder


@pytest.fixture
def inside(furnished: Path) -> Iterator[Path]:
    with here(furnished), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that draw what is no figure
        yield furnished


def test_a_slice_of_the_hostile_input(furnished: Path) -> None:
    record = fuzz.run(700, 1, furnished)
    assert not record["faults"]
    assert not record["executions"]
    assert record["cases"] >= 700


def test_what_once_crashed_is_refused_in_a_sentence(inside: Path) -> None:
    readers = {reader.name: reader for reader in READERS}
    outcome = fuzz.Outcome()
    for name, place, text in CRASHERS:
        fuzz.attacked(readers[name], crashing(Path(readers[name].file).read_bytes(), place, text), None, outcome, name)
    assert not outcome.faults
    assert outcome.refused + outcome.other == len(CRASHERS)
    assert outcome.other <= 2


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (KeyError("a"), "KeyError"),
        (CheckpointError("  "), "no message"),
        (None, "another content was read"),
    ],
    ids=["a bug", "nothing said", "unnoticed"],
)
def test_a_fault_in_a_reader_is_noticed(raised: Exception | None, words: str) -> None:
    def read() -> Any:
        if raised is not None:
            raise raised
        return "changed"

    outcome = fuzz.Outcome()
    fuzz.judged(outcome, read, digest("before"), True, "reader #1")
    assert words in outcome.faults[0]


def test_a_message_of_a_page_or_with_colours_is_noticed() -> None:
    assert not fuzz.complaint("expected a number")
    assert "characters" in fuzz.complaint("x" * 700)
    assert r"\x1b" in fuzz.complaint("\x1b[31m")


def test_a_slice_of_the_failing_system() -> None:
    record = faults.run(14, 1, 1, "relax --force;finetune, two processes;strip;pull --force")
    assert not record["faults"]
    assert record["points"] >= 12
    assert len(record["kinds"]) >= 6


def test_a_command_that_writes_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(temporary: Path, target: Path, force: bool) -> None:
        atomic.shutil.rmtree(target, ignore_errors=True)  # what stood there is lost before the new one is there
        os.mkdir(target)
        for entry in sorted(temporary.iterdir()):
            os.replace(entry, target / entry.name)
        os.rmdir(temporary)

    monkeypatch.setattr(atomic, "_swap_in", swapped)

    def last(_: faults.Attack, points: list[faults.Point]) -> list[faults.Point]:
        return [point for point in points[::-1] if (point.word, point.call[:7]) == ("SIGKILL before", "replace")]

    monkeypatch.setattr(faults.Attack, "chosen", last)
    record = faults.run(2, 1, 1, "relax --force")
    assert any("neither the old nor the new" in fault for fault in record["faults"])


def test_the_page_is_made_of_the_records_and_they_are_clean() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()
    for path in page.RECORDS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert not record["faults"]
        assert not record.get("executions")
