"""Who may see and change what on the loopback Hub, and which of the client's exceptions say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.client import OWNER_TOKEN, READER_TOKEN, STRANGER_TOKEN
from tests.hub.samples import CONFIG, FILES, NAME, WEIGHTS, commit
from tests.hub.server import Hub


@pytest.fixture
def private(api: HfApi) -> HfApi:
    commit(api, FILES)
    api.update_repo_settings(NAME, private=True)
    return api


def test_everybody_is_who_the_token_says(api: HfApi) -> None:
    assert get_token() == OWNER_TOKEN
    assert [api.whoami(token=token)["name"] for token in (OWNER_TOKEN, STRANGER_TOKEN)] == ["alice", "bob"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_unknown")


@pytest.mark.parametrize(("token", "status"), [(False, 401), (STRANGER_TOKEN, 404)])
def test_a_private_repository_looks_missing_to_others(private: HfApi, token: str | bool, status: int) -> None:
    for ask in (
        lambda: private.model_info(NAME, token=token),
        lambda: hf_hub_download(NAME, "model.safetensors", token=token),
        lambda: snapshot_download(NAME, token=token),
        lambda: private.upload_file(repo_id=NAME, path_or_fileobj=b"", path_in_repo="x", token=token),
    ):
        with pytest.raises(RepositoryNotFoundError) as caught:
            ask()
        assert caught.value.response.status_code == status
    with pytest.raises(RepositoryNotFoundError):
        private.model_info("alice/never-made", token=token)


@pytest.mark.parametrize("token", [None, READER_TOKEN])
def test_a_private_repository_opens_to_its_owner(private: HfApi, token: str | None) -> None:
    assert private.model_info(NAME, token=token).private is True
    assert Path(hf_hub_download(NAME, "model.safetensors", token=token)).read_bytes() == WEIGHTS


@pytest.mark.parametrize(("token", "status"), [(False, 401), (STRANGER_TOKEN, 403), (READER_TOKEN, 403)])
def test_only_the_owner_writes(api: HfApi, hub: Hub, token: str | bool, status: int) -> None:
    before = hub.store.repos[NAME].head
    with pytest.raises(HfHubHTTPError) as caught:
        api.upload_file(repo_id=NAME, path_or_fileobj=CONFIG, path_in_repo="config.json", token=token)
    assert caught.value.response.status_code == status
    assert hub.store.repos[NAME].head is before


def test_a_stranger_may_propose(api: HfApi) -> None:
    proposed = api.upload_file(
        repo_id=NAME, path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", create_pr=True, token=STRANGER_TOKEN
    )
    assert proposed.pr_num == 1
    assert api.get_discussion_details(NAME, 1).author == "bob"


@pytest.mark.parametrize(("token", "status"), [(False, 401), (STRANGER_TOKEN, 403)])
def test_a_gated_repository_is_seen_but_not_downloaded(api: HfApi, token: str | bool, status: int) -> None:
    commit(api, FILES)
    api.update_repo_settings(NAME, gated="auto")
    assert api.model_info(NAME, token=token).gated == "auto"
    with pytest.raises(GatedRepoError) as caught:
        hf_hub_download(NAME, "config.json", token=token)
    assert caught.value.response.status_code == status
    assert Path(hf_hub_download(NAME, "config.json")).read_bytes() == CONFIG


def test_an_unknown_token_is_an_error_of_its_own(api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        api.model_info(NAME, token="hf_unknown")
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_missing_revisions_and_files_are_told_apart(api: HfApi) -> None:
    oid = commit(api, FILES)
    for revision in ("nowhere", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(NAME, "config.json", revision=revision)
        with pytest.raises(RevisionNotFoundError):
            api.model_info(NAME, revision=revision)
    with pytest.raises(EntryNotFoundError) as caught:
        hf_hub_download(NAME, "missing.json")
    assert caught.value.response is not None
    assert caught.value.response.headers["X-Repo-Commit"] == oid
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "missing"))
    with pytest.raises(RevisionNotFoundError):
        commit(api, FILES, revision="nowhere")


def test_storage_takes_no_token_and_wants_a_signature(api: HfApi, hub: Hub) -> None:
    commit(api, FILES)
    [path] = {it.path for it in hub.uploads()}
    signed = hub.sign(path)
    assert httpx2.get(signed).content == WEIGHTS
    assert httpx2.get(signed, headers={"Authorization": f"Bearer {OWNER_TOKEN}"}).status_code == 400
    assert httpx2.get(hub.storage_endpoint + path).status_code == 403


def test_a_child_process_talks_to_the_hub_alone(api: HfApi, hub: Hub, environment: dict[str, str]) -> None:
    oid = commit(api, FILES)
    code = f"""
import httpx2
from huggingface_hub import snapshot_download
print(snapshot_download({NAME!r}))
for address in ("https://example.org/one", "http://example.org/two"):
    try:
        print(httpx2.get(address).status_code)
    except httpx2.ProxyError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    path, *others = done.stdout.split()
    assert Path(path).name == oid
    assert Path(path).is_relative_to(environment["HF_HOME"])
    assert others == ["refused", "403"]
    assert [it.line for it in hub.asked("", "elsewhere")] == ["CONNECT example.org:443", "GET http://example.org/two"]
    hub.requests.clear()
