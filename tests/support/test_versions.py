"""What a certificate says of the packages that results depend on."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from torch import nn

from surgeon.support.versions import differing_versions, owners, versions


def test_a_package_that_changes_architectures_is_listed_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions()
    (tmp_path / "cuequivariance-0.9.1.dist-info").mkdir()
    (tmp_path / "cuequivariance-0.9.1.dist-info/METADATA").write_text("Name: cuequivariance\nVersion: 0.9.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert versions() == {**before, "cuequivariance": "0.9.1"}


def test_packages_of_a_name_are_those_that_python_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"inside": "mine/part.py,,", "alone": "mine.py,,", "data": "mine/table.csv,,", "other": "mine_too/x.py,,"}
    for name, line in written.items():
        (tmp_path / f"{name}-1.dist-info").mkdir()
        (tmp_path / f"{name}-1.dist-info/METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (tmp_path / f"{name}-1.dist-info/RECORD").write_text(f"{line}\n{name}-1.dist-info/RECORD,,\n")
    (tmp_path / "other-1.dist-info/top_level.txt").write_text("mine\nyours\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = {**packages_distributions()}
    for names in (["mine"], ["yours"], ["mine_too"], ["torch", "safetensors"]):
        assert owners(frozenset(names)) == {package for name in names for package in known.get(name, ())}
    assert owners(frozenset({"mine"})) == {"inside", "alone", "other"}


class Layer(nn.Module):
    """Keeps the settings that it was built with, as e3nn's layers do."""

    def __init__(self, optimize_einsums: bool) -> None:
        super().__init__()
        self._optimize_einsums = optimize_einsums


def test_settings_are_listed_as_they_took_effect() -> None:
    assert not any("einsums" in name for name in versions(nn.Linear(1, 1)))
    built = versions(nn.Sequential(Layer(True), Layer(True)))
    assert built["e3nn's optimize_einsums"] == "True"
    other = versions(nn.Sequential(Layer(True), Layer(False)))
    assert other["e3nn's optimize_einsums"] == "False and True"
    assert differing_versions(built, built) == ""
    assert differing_versions(built, other) == "e3nn's optimize_einsums True, here False and True"


def test_a_package_that_decides_counts_where_it_is_installed_here_alone() -> None:
    made = {"torch": "2"}
    assert differing_versions(made, {"torch": "2", "rich": "1"}) == ""
    assert differing_versions(made, {"torch": "2", "cuequivariance": "1"}) == "cuequivariance none, here 1"
    assert differing_versions({**made, "cuequivariance": "1"}, made) == "cuequivariance 1, here none"
