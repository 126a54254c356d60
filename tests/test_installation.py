"""``surgeon doctor`` finds what is missing and what does not fit together: made-up distributions, and the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surgeon.support.installation import look_at_installation, needed_packages
from surgeon_cli.main import main

OURS = ["potential-layers>=2; extra == 'potentials'", "shared-io>=1; extra == 'potentials'", "core-layers>=3"]
OURS += ["shared-io>=1; extra == 'molecules'", "molecule-nets; extra == 'molecules'", "linter; extra == 'dev'"]


@pytest.fixture(autouse=True)
def _ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "made-up", "1.0", OURS, ["potentials", "molecules", "dev"])


def install(folder: Path, name: str, version: str, needs: list[str], extras: list[str] | None = None) -> None:
    """Write what an installer leaves of a distribution."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras or []] + [f"Requires-Dist: {need}" for need in needs]
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("\n".join(lines) + "\n")


def problems() -> list[str]:
    return list(look_at_installation("made-up").problems)


def test_what_is_always_needed_comes_first_and_extras_of_contributors_do_not_count(tmp_path: Path) -> None:
    install(tmp_path, "shared-io", "1.5", [])
    found = {package.name: package for package in needed_packages("made-up")}
    assert list(found) == ["core-layers", "potential-layers", "shared-io", "molecule-nets"]
    assert found["shared-io"].extras == ("potentials", "molecules")
    assert (found["shared-io"].installed, found["core-layers"].installed) == ("1.5", None)


def test_an_extra_is_wanted_once_something_of_its_own_is_there(tmp_path: Path) -> None:
    install(tmp_path, "core-layers", "3.1", [])
    install(tmp_path, "molecule-nets", "0.1", [])
    assert problems() == [
        "shared-io is missing, which [potentials, molecules] needs: pip install 'shared-io>=1'",
    ]
    install(tmp_path, "shared-io", "1.5", [])
    assert problems() == []  # nobody asked for potentials


def test_a_version_that_is_too_old_is_named_with_the_remedy(tmp_path: Path) -> None:
    install(tmp_path, "core-layers", "2.9", [])
    assert problems() == ["core-layers is 2.9, but everything needs >=3: pip install 'core-layers>=3'"]


def test_packages_that_exclude_each_other_are_found(tmp_path: Path) -> None:
    install(tmp_path, "core-layers", "3.1", ["pins==1.0", "absent; python_version < '3'", "gone>=2"])
    install(tmp_path, "pins", "2.0", [])
    assert problems() == [
        "core-layers 3.1 needs pins==1.0, but 2.0 is installed: pip install 'pins==1.0', or use core-layers in an "
        "environment of its own",
        "core-layers 3.1 needs gone>=2, which is missing: pip install 'gone>=2'",
    ]


def test_the_command_shows_the_packages_and_fails_with_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "e3nn", "0.1", [])
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    told = capsys.readouterr().out
    assert ended.value.code == 1
    assert "problem: e3nn is 0.1, but everything needs >=0.4.4: pip install 'e3nn>=0.4.4'" in told
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"torch", "e3nn", "typer"} <= {package["name"] for package in found["packages"]}
    assert found["devices"][0].startswith("CPU: ")
