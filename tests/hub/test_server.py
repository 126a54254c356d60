"""The loopback Hub, as the plain client sees it: what goes up comes down, under the names it should have."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from tests.hub.samples import CONFIG, FILES, NAME, WEIGHTS, commit, contents
from tests.hub.server import Hub


def test_a_folder_goes_up_and_comes_down(api: HfApi, folder: Path, hub: Hub) -> None:
    pushed = api.upload_folder(repo_id=NAME, folder_path=folder)
    assert pushed.oid == api.model_info(NAME).sha == hub.store.repos[NAME].head.id
    assert len(pushed.oid) == 40
    found = snapshot_download(NAME)
    assert Path(found).name == pushed.oid
    assert contents(found) == FILES


def test_large_files_come_from_the_other_origin_without_the_token(api: HfApi, hub: Hub) -> None:
    commit(api, FILES)
    for name in FILES:
        hf_hub_download(NAME, name)
    assert [it.sent for it in hub.asked("GET", "storage")] == [len(WEIGHTS)]
    assert [it.sent for it in hub.asked("GET .*/resolve/", "hub")] == [len(CONFIG)]
    assert not any(it.token for it in hub.asked("", "storage"))
    assert all(it.token for it in hub.asked("/resolve/", "hub"))


def test_contents_have_the_names_that_git_and_sha256_give_them(api: HfApi) -> None:
    commit(api, FILES)
    config, weights = api.get_paths_info(NAME, ["config.json", "model.safetensors", "missing"])
    assert isinstance(config, RepoFile)
    assert isinstance(weights, RepoFile)
    # What `git hash-object` prints.
    assert (config.blob_id, config.lfs) == ("c7df1bff69974960b9b4b5db8ad0b2d321c4f00a", None)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest() != weights.blob_id
    assert weights.size == weights.lfs.size == len(WEIGHTS)


def test_what_is_there_already_is_not_uploaded_again(api: HfApi, folder: Path, hub: Hub) -> None:
    first = api.upload_folder(repo_id=NAME, folder_path=folder).oid
    (folder / "copy.safetensors").write_bytes(WEIGHTS)
    second = api.upload_folder(repo_id=NAME, folder_path=folder).oid
    assert second != first
    assert len(hub.uploads()) == 1
    assert api.upload_folder(repo_id=NAME, folder_path=folder).oid == second
    assert len(hub.asked("POST .*/commit/")) == 2


def test_model_info_tells_about_a_revision(api: HfApi) -> None:
    old = commit(api, {"config.json": CONFIG})
    card = "---\nlibrary_name: equisurgeon\nbase_model: alice/base\ntags: [O3]\n---\n"
    new = commit(api, {"README.md": card.encode(), "model.safetensors": WEIGHTS})
    info = api.model_info(NAME, files_metadata=True)
    assert (info.sha, info.author, info.private, info.tags) == (new, "alice", False, ["O3"])
    assert info.library_name == "equisurgeon"
    assert info.card_data is not None
    assert info.card_data.base_model == "alice/base"
    sizes = {it.rfilename: (it.size, it.lfs is not None) for it in info.siblings or ()}
    assert sizes["config.json"] == (len(CONFIG), False)
    assert sizes["model.safetensors"] == (len(WEIGHTS), True)
    assert api.model_info(NAME, revision=old).sha == old
    assert {it.rfilename for it in api.model_info(NAME, revision=old).siblings or ()} == {
        ".gitattributes",
        "config.json",
    }
    expanded = api.model_info(NAME, expand=["sha"])
    assert (expanded.sha, expanded.siblings) == (new, None)


def test_trees_are_listed_page_by_page(api: HfApi, hub: Hub) -> None:
    commit(api, {"a/b/one.json": b"1", "a/two.json": b"2", "three.json": b"3"})
    paths = ["a", "a/b", "a/b/one.json", "a/two.json", "three.json"]
    hub.page_size = 2
    listed = api.list_repo_tree(NAME, recursive=True)
    assert [it.path for it in listed if it.path != ".gitattributes"] == paths
    assert len(hub.asked("GET .*/tree/")) == 3
    assert [it.path for it in api.list_repo_tree(NAME, "a")] == ["a/b", "a/two.json"]
    [file] = [it for it in api.list_repo_tree(NAME, "a", expand=True) if isinstance(it, RepoFile)]
    assert file.last_commit is not None
    assert file.last_commit.title == "change"


def test_tags_and_branches_come_and_go(api: HfApi) -> None:
    first = commit(api, {"config.json": b"1"})
    api.create_tag(NAME, tag="v1")
    api.create_branch(NAME, branch="next", revision=first)
    second = commit(api, {"config.json": b"2"}, revision="next")
    refs = api.list_repo_refs(NAME)
    assert {it.name: it.target_commit for it in refs.branches} == {"main": first, "next": second}
    assert [(it.ref, it.target_commit) for it in refs.tags] == [("refs/tags/v1", first)]
    assert Path(hf_hub_download(NAME, "config.json", revision="next")).read_bytes() == b"2"
    assert Path(hf_hub_download(NAME, "config.json", revision="v1")).read_bytes() == b"1"
    for again in (lambda: api.create_tag(NAME, tag="v1"), lambda: api.create_branch(NAME, branch="next")):
        with pytest.raises(HfHubHTTPError, match="409"):
            again()
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(NAME, tag="v2", revision="nowhere")
    api.delete_tag(NAME, tag="v1")
    api.delete_branch(NAME, branch="next")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(NAME, tag="v1")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch(NAME, branch="main")
    assert [it.commit_id for it in api.list_repo_commits(NAME)][0] == first
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="next")


def test_a_commit_on_a_stale_parent_is_refused(api: HfApi, hub: Hub) -> None:
    first = commit(api, {"config.json": b"1"})
    second = commit(api, {"config.json": b"2"}, parent=first)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, {"config.json": b"3"}, parent=first)
    assert caught.value.response.status_code == 412
    assert hub.store.repos[NAME].head.id == second


def test_files_and_folders_are_deleted(api: HfApi) -> None:
    commit(api, {"a/one.json": b"1", "a/two.json": b"2", "three.json": b"3"})
    api.create_commit(NAME, [CommitOperationDelete("a/"), CommitOperationDelete("three.json")], commit_message="clear")
    assert api.list_repo_files(NAME) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="404"):
        api.delete_file("three.json", NAME)


def test_a_pull_request_waits_until_it_is_merged(api: HfApi, folder: Path) -> None:
    before = commit(api, {"config.json": b"old", "gone.json": b"1"})
    proposed = api.upload_folder(repo_id=NAME, folder_path=folder, create_pr=True, commit_message="Weights")
    assert proposed.pr_revision == "refs/pr/1"
    assert api.model_info(NAME).sha == before
    assert contents(snapshot_download(NAME, revision="refs/pr/1"))["config.json"] == CONFIG
    [listed] = api.get_repo_discussions(NAME)
    details = api.get_discussion_details(NAME, 1)
    assert (listed.title, details.status, details.target_branch) == ("Weights", "open", "refs/heads/main")
    api.delete_file("gone.json", NAME, revision="refs/pr/1")
    commit(api, {"other.json": b"meanwhile"})
    api.merge_pull_request(NAME, 1)
    assert contents(snapshot_download(NAME)) == {**FILES, "other.json": b"meanwhile"}
    merged = api.get_discussion_details(NAME, 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", api.model_info(NAME).sha)


def test_a_pull_request_can_be_opened_before_its_commits(api: HfApi) -> None:
    opened = api.create_pull_request(NAME, "Weights")
    assert (opened.status, opened.git_reference) == ("draft", "refs/pr/1")
    oid = commit(api, {"config.json": CONFIG}, revision="refs/pr/1")
    refs = api.list_repo_refs(NAME, include_pull_requests=True)
    assert [it.target_commit for it in refs.pull_requests or ()] == [oid]


def test_repositories_are_made_moved_and_removed(api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    oid = commit(api, FILES)
    api.move_repo(NAME, "alice/renamed")
    assert api.model_info("alice/renamed").sha == oid
    # The old name leads to the new one.
    assert Path(hf_hub_download(NAME, "model.safetensors")).read_bytes() == WEIGHTS
    api.delete_repo("alice/renamed")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/renamed")
    api.delete_repo("alice/renamed", missing_ok=True)


@pytest.mark.parametrize(
    "block", ["base_model: [unclosed", "base_model: not a name/at all", "base_model_relation: cousin", "tags: 3"]
)
def test_a_card_with_bad_metadata_is_refused(api: HfApi, block: str, hub: Hub) -> None:
    before = hub.store.repos[NAME].head
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        commit(api, {"README.md": f"---\n{block}\n---\n".encode()})
    assert hub.store.repos[NAME].head is before


def test_a_hostile_repository_can_be_put_past_the_checks(api: HfApi, hub: Hub) -> None:
    oid = hub.store.put("mallory/net", {"../outside.json": b"x", "config.json": CONFIG, "net.pt": b"pickle"}).id
    assert api.model_info("mallory/net").sha == oid
    assert Path(hf_hub_download("mallory/net", "net.pt")).read_bytes() == b"pickle"
    assert "../outside.json" in api.list_repo_files("mallory/net")
