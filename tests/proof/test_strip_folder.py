"""Whatever fails while a trained folder is stripped, its weights stay, and the next command is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import SurgeonError, TaskError
from surgeon.opening.open import open_path
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.strip_folder import StripSettings, strip_folder
from tests.commands import Surgeon, files_in
from tests.opening.test_workspace import make_relaxed

QUICK = StripSettings(measure=MeasureSettings(1, 1), split="validation")
PARTS = {
    "strip_and_certify.check_code": r"`surgeon --debug strip \S+ -o clean` shows where it fails",
    "equivariance.Workspace.double": r"`surgeon --debug strip \S+ -o clean` shows where it fails",
    "strip_and_certify.strip": r"`surgeon --debug strip \S+ -o clean` shows where it fails",
    "strip_and_certify.metrics_of": r"`surgeon strip \S+ -o clean --metrics none` leaves the metrics out",
    "strip_and_certify.certify_opened": r"`surgeon --debug strip \S+ -o clean` shows where it fails",
    "strip_folder.container_extra": r"`surgeon strip \S+ -o clean` writes weights and certificate alone",
    "clean_folder.certificate_text": r"`surgeon strip \S+ -o clean` again",
}


@pytest.fixture
def relaxed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_relaxed(Surgeon.folder(tmp_path, monkeypatch))


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("part", PARTS)
def test_a_failure_loses_nothing_and_names_the_next_command(
    relaxed: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    before = files_in(relaxed)
    monkeypatch.setattr(f"surgeon.proof.{part}", failing(RuntimeError("boom")))
    with pytest.raises(SurgeonError, match=f"RuntimeError: boom.* {PARTS[part]}") as caught:
        strip_folder(relaxed, "clean", StripSettings(measure=QUICK.measure, container=True))
    assert str(caught.value).count(f"stay in {relaxed}, whose model.safetensors holds them") == 1
    assert files_in(relaxed) == before
    assert not Path("clean").exists()
    monkeypatch.undo()
    open_path(relaxed)


def test_an_error_in_words_keeps_its_class(relaxed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgeon.proof.strip_and_certify.metrics_of", failing(TaskError("no such split: give one")))
    with pytest.raises(TaskError, match=r"^no such split: give one; the trained weights stay in .*--metrics none`"):
        strip_folder(relaxed, "clean", QUICK)


def test_every_stage_says_how_long_it_took(relaxed: Path) -> None:
    told: list[str] = []
    assert strip_folder(relaxed, "clean", QUICK, announce=told.append).certificate.passed
    stages = [re.fullmatch(r"(.+) \(\d+\.\d s\)", line) for line in told]
    assert [stage and stage[1] for stage in stages] == [
        "opening the original",
        "measuring the relaxed model",
        "stripping",
        "comparing with the original",
        "computing metrics",
        "certifying",
        "preparing further formats",
        "writing the clean folder",
    ]
