"""A loopback Hub for the tests in this folder, and the client set up to talk to nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.cli.conftest import surgeon, work
from tests.hub.client import OWNER_TOKEN, USERS, child_environment, no_pauses, point_client_at
from tests.hub.samples import FILES, NAME
from tests.hub.server import Hub

__all__ = ["surgeon", "work"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running, empty Hub; nobody is logged in to it, and the client does not know of it yet."""
    hub = Hub(dict(USERS))
    yield hub
    hub.close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Environment of a child process whose client talks to the Hub as alice, with a cache of its own."""
    return child_environment(hub, tmp_path / "hf-home", OWNER_TOKEN)


@pytest.fixture
def logged_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub, with the client inside this process talking to it as alice, with the same cache as ``environment``."""
    with point_client_at(hub, tmp_path / "hf-home", OWNER_TOKEN, monkeypatch):
        yield hub
    assert not hub.asked("", "elsewhere"), "the client has tried to reach another host"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client inside this process repeat what failed at once, not after seconds."""
    no_pauses(monkeypatch)


@pytest.fixture
def api(logged_in: Hub) -> HfApi:
    """The plain client, logged in as alice, who has an empty repository."""
    api = HfApi()
    api.create_repo(NAME)
    return api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file that git keeps and one for large file storage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder
