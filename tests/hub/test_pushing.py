"""Pushing: what goes to the Hub, and what does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import CheckpointError, HubError, UsageError
from surgeon.files.atomic import _BACKUP, _host
from surgeon.hub import pushing
from surgeon.hub.content import content_of
from surgeon.hub.pulling import pull
from surgeon.hub.pushing import PushOptions, push_to_hub
from tests.commands import Surgeon, dead_pid
from tests.hub.client import OWNER_TOKEN, READER_TOKEN
from tests.hub.folders import files_of, made
from tests.hub.server import Hub

__all__ = ["made"]

REPO = "alice/net"
WRITING = "^(POST|PUT|DELETE) "


def files_on(hub: Hub, repo: str = REPO, revision: str = "main") -> dict[str, bytes]:
    files = hub.store.repos[repo].resolve(revision).files
    return {name: blob.data for name, blob in files.items() if name != ".gitattributes"}


def test_a_dry_run_lists_and_writes_nothing(logged_in: Hub, made: Path, surgeon: Surgeon) -> None:
    for _ in range(2):
        out = surgeon("push", str(made / "run"), REPO, "--dry-run").out
        assert "model.safetensors:" in out
        assert "training_state/state.safetensors: left out" in out
        assert not logged_in.asked(WRITING)
        if REPO not in logged_in.store.repos:
            logged_in.store.create(REPO, "alice")
    assert files_on(logged_in) == {}


def test_what_is_uploaded(logged_in: Hub, made: Path) -> None:
    pushed = push_to_hub(made / "run", REPO)
    held = files_on(logged_in)
    local = files_of(made / "run")
    assert set(held) == {
        *("README.md", "model.safetensors", "relaxation.safetensors", "surgeon_config.json"),
        *("records.jsonl", "steps.jsonl", "branches.jsonl", "figures.json"),
    }
    assert pushed.commit == logged_in.store.repos[REPO].head.id
    assert {name for name in held if held[name] != local[name]} == {"README.md", "surgeon_config.json"}
    config = json.loads(held["surgeon_config.json"])
    assert config["base"]["file"] == "net.pt"
    assert config["task"] is None
    assert not any(str(made).encode() in content for content in held.values())
    assert not any(OWNER_TOKEN.encode() in content for content in held.values())


def test_nothing_is_uploaded_twice(logged_in: Hub, made: Path) -> None:
    first = push_to_hub(made / "run", REPO)
    assert len(logged_in.uploads()) == 2
    written = len(logged_in.asked(WRITING))
    again = push_to_hub(made / "run", REPO)
    assert again.commit == first.commit
    assert len(logged_in.asked(WRITING)) == written
    third = push_to_hub(made / "run", REPO, PushOptions(with_training_state=True))
    assert len(logged_in.uploads()) == 3
    assert [upload.name for upload in third.files if upload.changed] == [
        *("training_state/state.json", "training_state/state.safetensors"),
    ]


def changed_before(step: str, name: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a run, one of whose two files of weights gets the content of the other just before a step."""
    folder, usual = Path(shutil.copytree(source, source.parent / "changing")), getattr(pushing, step)
    (other,) = {"model.safetensors", "relaxation.safetensors"} - {name}

    def changing(*given: Any) -> Any:
        shutil.copyfile(folder / other, folder / name)
        return usual(*given)

    monkeypatch.setattr(pushing, step, changing)
    return folder


def test_a_folder_that_changes_after_it_was_checked_is_not_uploaded(
    logged_in: Hub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    folder = changed_before("card_text", "relaxation.safetensors", run, monkeypatch)
    with pytest.raises(CheckpointError, match="relaxation.safetensors"):
        push_to_hub(folder, REPO)
    assert files_on(logged_in) == {}


def test_a_small_file_that_changes_while_it_is_uploaded_goes_as_it_was_checked(
    logged_in: Hub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    push_to_hub(run, "alice/whole")
    push_to_hub(changed_before("_commit", "model.safetensors", run, monkeypatch), REPO)
    assert files_on(logged_in)["model.safetensors"] == files_on(logged_in, "alice/whole")["model.safetensors"]


def test_branch_and_tag(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "relaxed", REPO)
    trained = push_to_hub(made / "run", REPO, PushOptions(revision="trained", tag="v1"))
    assert "records.jsonl" in files_on(logged_in, revision="trained")
    assert "records.jsonl" not in files_on(logged_in)
    assert logged_in.store.repos[REPO].tags["v1"].id == trained.commit
    again = push_to_hub(made / "run", REPO, PushOptions(revision="trained", tag="v1"))
    assert again.commit == trained.commit
    with pytest.raises(HubError, match="tag v1 .* to be free"):
        push_to_hub(made / "relaxed", REPO, PushOptions(revision="main", tag="v1"))


def test_a_pull_request_leaves_the_branch_as_it_is(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "relaxed", REPO)
    before = files_on(logged_in)
    pushed = push_to_hub(made / "run", REPO, PushOptions(create_pr=True, message="Trained"))
    assert pushed.pull_request is not None
    assert files_on(logged_in) == before
    assert "records.jsonl" in files_on(logged_in, revision="refs/pr/1")


def test_a_private_repository(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "relaxed", REPO, PushOptions(private=True))
    assert logged_in.store.repos[REPO].private
    push_to_hub(made / "relaxed", "alice/open")
    with pytest.raises(UsageError, match="exists and is public: nothing was uploaded"):
        push_to_hub(made / "run", "alice/open", PushOptions(private=True))
    assert "records.jsonl" not in files_on(logged_in, "alice/open")


def test_somebody_changed_the_repository_meanwhile(logged_in: Hub, made: Path) -> None:
    first = push_to_hub(made / "relaxed", REPO)
    logged_in.store.put(REPO, {"notes.txt": b"theirs"})
    with pytest.raises(HubError, match="somebody changed it meanwhile"):
        push_to_hub(made / "run", REPO, PushOptions(parent_commit=first.commit))
    assert "records.jsonl" not in files_on(logged_in)
    logged_in.faults.answer(412, "POST /api/models/.*/commit/")  # between looking and committing
    with pytest.raises(HubError, match="somebody changed the repository meanwhile"):
        push_to_hub(made / "run", REPO)
    push_to_hub(made / "run", REPO)
    assert files_on(logged_in)["notes.txt"] == b"theirs"


def test_an_interrupted_upload_is_repeated(logged_in: Hub, made: Path) -> None:
    logged_in.faults.die_before_commit(times=10)
    with pytest.raises(HubError) as caught:
        push_to_hub(made / "run", REPO)
    assert OWNER_TOKEN not in str(caught.value)
    assert files_on(logged_in) == {}
    logged_in.faults.clear()
    uploads = len(logged_in.uploads())
    push_to_hub(made / "run", REPO)
    assert len(logged_in.uploads()) == uploads, "the large files were there already"
    assert "records.jsonl" in files_on(logged_in)


def test_a_token_that_may_only_read(
    logged_in: Hub, made: Path, monkeypatch: pytest.MonkeyPatch, surgeon: Surgeon
) -> None:
    logged_in.store.create(REPO, "alice")
    monkeypatch.setenv("HF_TOKEN", READER_TOKEN)
    failed = surgeon("push", str(made / "relaxed"), REPO, code=2)
    assert "write access" in failed.err
    assert failed.err.count("\n") == 1
    assert READER_TOKEN not in failed.err + failed.out


def test_clean_weights(logged_in: Hub, made: Path, tmp_path: Path, surgeon: Surgeon) -> None:
    pushed = push_to_hub(made / "clean", REPO)
    certified = {"certificate.json", "certificate.intoto.json", "CERTIFICATE.md"}
    assert certified | {"model.safetensors", "README.md"} == set(files_on(logged_in))
    pulled = pull(f"hf://{REPO}", tmp_path / "pulled")
    assert pulled.path.revision == pushed.commit
    found = files_of(tmp_path / "pulled")
    assert {name for name in found if found[name] != (made / "clean" / name).read_bytes()} == {"README.md"}
    surgeon("verify", str(tmp_path / "pulled"), "--against", str(made / "net.pt"))
    surgeon("verify", f"hf://{REPO}", "--against", str(made / "net.pt"))
    push_to_hub(made / "relaxed", "alice/relaxed")
    with pytest.raises(UsageError, match="holds one: nothing was uploaded"):
        push_to_hub(made / "clean", "alice/relaxed")


def test_links_out_of_the_folder_are_not_followed(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "secret.jsonl").write_text("secret\n")
    (tmp_path / "run" / "steps.jsonl").unlink()
    (tmp_path / "run" / "steps.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(CheckpointError, match="link to somewhere else"):
        push_to_hub(tmp_path / "run", REPO)
    assert not logged_in.asked(WRITING)


@pytest.mark.parametrize(
    ("repo", "options", "words"),
    [
        ("net", PushOptions(), "owner, a slash and its name"),
        ("alice/../net", PushOptions(), "owner, a slash and its name"),
        ("hf://alice/net@main", PushOptions(), "given as --revision"),
        (REPO, PushOptions(revision="0" * 40), "name of a branch"),
        (REPO, PushOptions(create_pr=True, tag="v1"), "either --create-pr or --tag"),
        (REPO, PushOptions(parent_commit="abc"), "40 hex digits"),
        (REPO, PushOptions(tag="a b"), "branch, a tag or a commit"),
    ],
)
def test_bad_requests(logged_in: Hub, made: Path, repo: str, options: PushOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        push_to_hub(made / "relaxed", repo, options)
    assert not logged_in.requests


def test_folders_that_are_not_pushed(logged_in: Hub, made: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a folder written by"):
        push_to_hub(made, REPO)
    with pytest.raises(UsageError, match="has none: leave out --with-training-state"):
        push_to_hub(made / "relaxed", REPO, replace(PushOptions(), with_training_state=True))
    assert not logged_in.asked(WRITING)


def test_a_clean_folder_that_a_killed_process_had_moved_aside(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "clean", tmp_path / f".clean.{_BACKUP}-{dead_pid()}-{_host()}-0123abcd")
    assert content_of(tmp_path / "clean").kind == "clean"
    (tmp_path / "clean" / "certificate.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"is damaged \(.* line 1 .*\): strip again$"):
        content_of(tmp_path / "clean")
