"""The whole way with a float64 twin that reads its weights where they are, as it does with large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surgeon.files.content import read_json
from surgeon.opening.relaxing import RelaxSettings, relax_checkpoint
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.strip_folder import StripSettings, strip_folder
from surgeon.support import widened
from tests.commands import Surgeon


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Surgeon.folder(tmp_path, monkeypatch)


def way(name: str) -> dict[str, Any]:
    """Relax and fold; return the plan and what is certified, but for figures that rounding changes."""
    relax_checkpoint("net.pt", name, RelaxSettings(strip_mode="fold", init_scale=0.5))
    strip_folder(name, f"{name}-clean", StripSettings(measure=MeasureSettings(1, 1)))
    certificate = read_json(Path(f"{name}-clean") / "certificate.json")
    plan = read_json(Path(name) / "surgeon_config.json")["plan"]
    sites = [{key: site[key] for key in ("name", "rho_in", "rho_out", "fold", "rank")} for site in plan["sites"]]
    kept = {key: certificate[key] for key in ("passed", "grade", "checks", "differences", "sites", "architecture")}
    return {"sites": sites, "skipped": plan["skipped"], "certificate": kept}


def test_what_is_planned_folded_and_certified_is_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = way("small")
    monkeypatch.setattr(widened, "LARGE", 1)
    assert way("large") == small
    assert small["certificate"]["passed"]
