"""The hash of a growing file is complete when the file is, and a wrong one does no harm."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from surgeon.files.address import HubPath
from surgeon.opening.remote import fetch
from surgeon.opening.remote.client import list_files
from surgeon.opening.remote.following import Following, following
from tests.hub.server import Hub
from tests.hub.test_fetching import BASE, weights

FIRST, SECOND = os.urandom(3_000_000), os.urandom(1_000_001)


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be renamed on Windows")
def test_a_file_is_read_as_it_grows_and_is_renamed(tmp_path: Path) -> None:
    unfinished, finished = tmp_path / "ab.1234.incomplete", tmp_path / "ab"
    with ExitStack() as files:
        followed = Following(tmp_path, files)
        followed.read_on()
        with open(unfinished, "wb") as handle:
            handle.write(FIRST)
            handle.flush()
            followed.read_on()
            assert followed.sha256(unfinished) == hashlib.sha256(FIRST).hexdigest()
            handle.write(SECOND)
        unfinished.rename(finished)
        assert followed.sha256(finished) != hashlib.sha256(FIRST + SECOND).hexdigest()
        followed.read_on()
        assert followed.sha256(finished) == hashlib.sha256(FIRST + SECOND).hexdigest()


def test_a_file_that_was_there_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "ab").write_bytes(FIRST)
    with following(tmp_path) as followed:
        pass
    assert followed.sha256(tmp_path / "ab") is None


def test_the_thread_ends_with_an_error_in_the_block(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broke off"), following(tmp_path / "absent"):
        raise ValueError("broke off")


@pytest.mark.parametrize("right", [True, False])
def test_a_hash_that_disproves_is_taken_again(logged_in: Hub, monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    logged_in.store.put(BASE, {"net.safetensors": weights(1)})
    listing = list_files(HubPath.parse(f"hf://{BASE}"))
    announced = listing.files["net.safetensors"].sha256
    taken = []

    class Known(Following):
        def sha256(self, path: Path) -> str | None:
            return announced if right else "0" * 64

    @contextmanager
    def known(folder: Path) -> Iterator[Following]:
        yield Known(folder, ExitStack())

    def counted(path: Path) -> str:
        taken.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(fetch, "following", known)
    monkeypatch.setattr(fetch, "sha256_of_file", counted)
    assert fetch.open_listed(listing).tensors
    assert len(taken) == (0 if right else 1)
