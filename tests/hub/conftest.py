"""A loopback Hub for the tests in this folder, and the client set up to talk to nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client import OWNER_TOKEN, USERS, child_environment, point_client_at
from tests.hub.server import Hub


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
    assert not hub.asked("^CONNECT "), "the client has tried to reach another host"
