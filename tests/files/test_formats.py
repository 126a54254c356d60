"""Folders that were written in an earlier format are read as what they are; newer ones are refused with advice."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.errors import SurgeonError
from surgeon.files.clean import read_clean
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed
from surgeon.files.seals import seal_folder
from surgeon.opening.planning import read_plan
from surgeon.report.write import read_page
from surgeon.training.runs import read_record

ARCHIVES = sorted((Path(__file__).parents[1] / "data").glob("format_*.tar.xz"))

KEYS = ("first.features", "second.features")


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name.partition(".")[0])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return next(tmp_path.iterdir())


def test_every_format_is_read(folder: Path) -> None:
    original = open_checkpoint(folder / "net.pt").tensors
    relaxed, run, clean = (folder / f"net-{kind}" for kind in ("relaxed", "run", "clean"))
    read = read_relaxed(relaxed)
    assert all(torch.equal(read.base[name], tensor) for name, tensor in original.items())
    keys = {site.key for site in read.config.plan.sites}
    assert keys == {site.key for site in read_plan(folder / "plan.json", None).sites} == {*KEYS}
    assert read_record(run).state.epoch == 1
    assert read_relaxed(run).config.step == 3
    files = read_clean(clean)
    assert files.certificate["passed"]
    assert files.certificate["files"] == files.hashes
    assert files.tensors.keys() == original.keys()
    for path in (run, clean, folder / "net-compare.json"):
        assert "<svg" in read_page(path).html()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("net-relaxed/surgeon_config.json", lambda folder: read_relaxed(folder / "net-relaxed")),
        ("net-clean/certificate.json", lambda folder: read_clean(folder / "net-clean")),
        ("plan.json", lambda folder: read_plan(folder / "plan.json", None)),
    ],
    ids=["relaxed folder", "clean folder", "plan"],
)
def test_a_newer_format_is_refused_with_advice(folder: Path, name: str, read: Callable[[Path], Any]) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 999, "more": 1}))
    if path.parent.name == "net-relaxed":
        seal_folder(path.parent)
    with pytest.raises(SurgeonError, match="999.*update equisurgeon"):
        read(folder)
