"""Point the unmodified Hub client at a loopback Hub, in a child process or in this one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub.server import Hub, User

# Made up; they open nothing but the loopback Hub.
OWNER_TOKEN, READER_TOKEN, STRANGER_TOKEN = "hf_of_alice_for_tests", "hf_of_alice_to_read", "hf_of_bob_for_tests"
USERS = {OWNER_TOKEN: User("alice"), READER_TOKEN: User("alice", "read"), STRANGER_TOKEN: User("bob")}
# Variables that would lead the client elsewhere, and whose being empty means something.
MISLEADING = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE")


def child_environment(hub: Hub, home: Path, token: str | None) -> dict[str, str]:
    """Return the environment of a new process whose client talks to the Hub and to nothing else."""
    inherited = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    return {**inherited, **client_variables(hub, home, token)}


def client_variables(hub: Hub, home: Path, token: str | None) -> dict[str, str]:
    """Return what to set for the client.

    Connections to any other host go to the Hub as if it were a proxy, which logs and refuses them.
    """
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": token or "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), hub.endpoint),
        **dict.fromkeys(("ALL_PROXY", "all_proxy"), ""),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
        # The Hub speaks no TLS, and a client that reads no authorities starts ten times as fast.
        "SSL_CERT_FILE": "",
        "SSL_CERT_DIR": str(home),
    }


@contextmanager
def point_client_at(hub: Hub, home: Path, token: str | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the client inside this process talk to the Hub.

    It reads its settings when it is imported, so what it has made of them is replaced, wherever it has copied them to.
    """
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    for name in MISLEADING:
        monkeypatch.delenv(name, raising=False)
    for name, value in client_variables(hub, home, token).items():
        monkeypatch.setenv(name, value)
    settings: dict[str, str | bool] = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
    }
    for name in ("ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"):
        assert hasattr(constants, name), f"this client keeps its setting {name} somewhere else"
    # They copy settings when they are imported, which must not happen while a test has replaced them.
    for name in ("_cache_manager", "_git_credential", "tqdm"):
        import_module(f"huggingface_hub.utils.{name}")
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "huggingface_hub"]:
        for setting in settings.keys() & vars(module).keys():
            monkeypatch.setattr(module, setting, settings[setting])
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    _http.close_session()
    yield
    _http.close_session()


def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client inside this process repeat failed requests without waiting; nothing else about it changes."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", hurried)
