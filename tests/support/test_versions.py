"""What a certificate says of the packages that results depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.support.versions import versions


def test_a_package_that_changes_architectures_is_listed_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions()
    (tmp_path / "cuequivariance-0.9.1.dist-info").mkdir()
    (tmp_path / "cuequivariance-0.9.1.dist-info/METADATA").write_text("Name: cuequivariance\nVersion: 0.9.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert versions() == {**before, "cuequivariance": "0.9.1"}
