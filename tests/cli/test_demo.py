"""The demo: what a wheel has to hold for it, and the commands that it gives."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from surgeon.errors import ExistsError
from surgeon_cli import demonstration
from surgeon_cli.demonstration import FILES, data_files, run_demo

ROOT = Path(__file__).parents[2]


def test_a_wheel_holds_what_the_demo_copies() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {f"examples/nbody/{name}": f"surgeon_cli/nbody/{name}" for name in FILES}
    assert sum((ROOT / "examples/nbody" / name).stat().st_size for name in FILES) < 300_000
    assert data_files() == ROOT / "examples" / "nbody"


def test_the_path_is_that_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []
    monkeypatch.setattr(demonstration, "surgeon", lambda *words: given.append(words))
    monkeypatch.chdir(tmp_path)
    run_demo(Path("demo"), short=True)
    assert [words[0] for words in given] == ["relax", "finetune", "strip", "verify"]
    assert Path.cwd() == tmp_path / "demo"
    assert {path.name for path in Path.cwd().iterdir()} == set(FILES)
    assert Path(given[0][1]).is_file()
    with pytest.raises(ExistsError):
        run_demo(tmp_path / "demo", short=True)


def test_a_command_that_fails_ends_the_demo() -> None:
    with pytest.raises(SystemExit, match="ended with exit code 2"):
        demonstration.surgeon("inspect", "no.pt")
