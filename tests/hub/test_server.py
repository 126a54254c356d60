"""The loopback Hub, as the plain client sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from tests.hub.server import Hub

NAME = "alice/net"
WEIGHTS = bytes(range(256)) * 1000
CONFIG = b'{"format_version": 1}\n'


@pytest.fixture
def api(logged_in: Hub) -> HfApi:
    api = HfApi()
    api.create_repo(NAME)
    return api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


def test_a_folder_goes_up_and_comes_down(api: HfApi, folder: Path, hub: Hub) -> None:
    commit = api.upload_folder(repo_id=NAME, folder_path=folder)
    info = api.model_info(NAME, files_metadata=True)
    assert info.sha == commit.oid == hub.store.repos[NAME].head.id
    assert len(commit.oid) == 40
    sizes = {it.rfilename: (it.size, it.lfs is not None) for it in info.siblings or ()}
    assert sizes["config.json"] == (len(CONFIG), False)
    assert sizes["model.safetensors"] == (len(WEIGHTS), True)
    for name, content in (("config.json", CONFIG), ("model.safetensors", WEIGHTS)):
        path = Path(hf_hub_download(NAME, name))
        assert path.read_bytes() == content
        assert path.parent.name == commit.oid
