"""How the plain client takes a Hub that dies, lies, or is not there, which is what the toolkit has to build on."""

from __future__ import annotations

import hashlib
from math import inf
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from tests.hub.samples import CONFIG, FILES, NAME, WEIGHTS, commit, contents
from tests.hub.server import Hub

pytestmark = pytest.mark.usefixtures("hurried")

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
LAST = len(WEIGHTS) - 1


@pytest.fixture
def filled(api: HfApi) -> str:
    """The commit of a repository with one small and one large file."""
    return commit(api, FILES)


def cached(hub: Hub, home: Path) -> list[Path]:
    """Return the contents in the cache, whole or not."""
    return [path for path in (home / "hf-home" / "hub").rglob("*") if path.is_file() and path.parent.name == "blobs"]


@pytest.mark.parametrize("name", list(FILES))
def test_a_download_goes_on_where_it_broke_off(
    filled: str, hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What it has received of an unfinished chunk it asks for again, and a chunk has 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 7)
    hub.faults.die_in_download(name, after=7)
    assert Path(hf_hub_download(NAME, name)).read_bytes() == FILES[name]
    first, second = (it for it in hub.asked("GET") if it.sent and (name == "config.json") == (it.origin == "hub"))
    assert first.sent == 7
    assert second.headers["Range"] == "bytes=7-"
    assert (second.status, second.sent) == (206, len(FILES[name]) - 7)


def test_a_download_that_always_dies_leaves_nothing_behind(filled: str, hub: Hub, tmp_path: Path) -> None:
    fault = hub.faults.die_in_download("model.safetensors", after=0, times=inf)
    with pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download(NAME, "model.safetensors")
    assert fault.hits > 1
    assert cached(hub, tmp_path) == []
    hub.faults.clear()
    assert Path(hf_hub_download(NAME, "model.safetensors")).read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", list(FILES))
def test_the_client_notices_a_truncated_file(filled: str, hub: Hub, name: str, tmp_path: Path) -> None:
    hub.faults.truncate(name, to=5)
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download(NAME, name)
    assert cached(hub, tmp_path) == []


@pytest.mark.parametrize("name", list(FILES))
def test_the_client_does_not_notice_a_flipped_bit(filled: str, hub: Hub, name: str) -> None:
    hub.faults.flip_bit(name, byte=3)
    found = Path(hf_hub_download(NAME, name)).read_bytes()
    assert found != FILES[name]
    assert len(found) == len(FILES[name])


def test_a_flipped_bit_is_found_by_comparing_checksums(api: HfApi, filled: str, hub: Hub) -> None:
    hub.faults.flip_bit("model.safetensors", byte=LAST)
    snapshot_download(NAME)
    verdict = api.verify_repo_checksums(NAME)
    assert [it["path"] for it in verdict.mismatches] == ["model.safetensors"]


def test_an_upload_that_dies_once_is_repeated_by_the_client(api: HfApi, hub: Hub) -> None:
    hub.faults.die_in_upload(SHA256, after=70_000)
    commit(api, FILES)
    broken, whole = hub.uploads()
    assert (broken.status, whole.status) == (0, 200)
    assert 70_000 < broken.received < whole.received == len(WEIGHTS)
    assert hub.store.repos[NAME].head.files["model.safetensors"].data == WEIGHTS


def test_a_broken_upload_repeated_sends_only_what_is_missing(api: HfApi, hub: Hub, folder: Path) -> None:
    other = WEIGHTS[::-1]
    (folder / "relaxation.safetensors").write_bytes(other)
    before = hub.store.repos[NAME].head
    fault = hub.faults.die_in_upload(SHA256, times=inf)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    assert fault.hits > 1
    assert hub.store.repos[NAME].head is before
    hub.faults.clear()
    api.upload_folder(repo_id=NAME, folder_path=folder)
    done = sorted(it.received for it in hub.uploads() if it.status == 200)
    assert done == [len(WEIGHTS), len(other)]
    assert contents(snapshot_download(NAME)) == {**FILES, "relaxation.safetensors": other}


def test_a_commit_that_dies_is_repeated_without_uploading_again(api: HfApi, hub: Hub, folder: Path) -> None:
    before = hub.store.repos[NAME].head
    hub.faults.die_before_commit()
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    assert hub.store.repos[NAME].head is before
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert len(hub.uploads()) == 1
    assert hub.store.repos[NAME].head.parent is before


def test_a_commit_whose_answer_is_lost_is_not_written_twice(api: HfApi, hub: Hub, folder: Path) -> None:
    hub.faults.die_after_commit()
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    written = hub.store.repos[NAME].head
    assert api.upload_folder(repo_id=NAME, folder_path=folder).oid == written.id
    assert hub.store.repos[NAME].head is written


def test_a_server_error_is_waited_out(filled: str, api: HfApi, hub: Hub) -> None:
    fault = hub.faults.answer(503, "GET /api/models/.*/tree/", times=2)
    assert set(api.list_repo_files(NAME)) >= set(FILES)
    assert fault.hits == 2
    hub.faults.answer(500, "GET /api/models/", times=inf)
    with pytest.raises(HfHubHTTPError, match="500"):
        api.model_info(NAME)


@pytest.mark.parametrize("how", ["unplugged", "offline", "refused"])
def test_a_warm_cache_is_enough(filled: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    snapshot_download(NAME)
    hub.requests.clear()
    if how == "unplugged":
        hub.unplug()
    elif how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.faults.refuse_everything()
    assert contents(snapshot_download(NAME)) == FILES
    assert Path(hf_hub_download(NAME, "config.json")).read_bytes() == CONFIG
    assert Path(hf_hub_download(NAME, "config.json", revision=filled)).read_bytes() == CONFIG
    assert bool(hub.requests) == (how == "refused")


def test_a_cold_cache_is_not_enough(filled: str, hub: Hub) -> None:
    hub.unplug()
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(NAME, "config.json")
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(NAME)
    hub.plug_in()
    assert contents(snapshot_download(NAME)) == FILES
