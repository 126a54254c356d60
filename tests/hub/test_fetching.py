"""Downloads: revisions, what is fetched, damage on the way, access, and no network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save

import surgeon as package
from surgeon.errors import CheckpointError, HubError, TrustError, UsageError
from surgeon.files.relaxed import read_relaxed
from surgeon.files.seals import seal_folder
from surgeon.hub.pulling import pull
from surgeon.hub.pushing import push_to_hub
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.remote.fetch import open_anywhere
from tests import tiny
from tests.commands import Surgeon
from tests.hub.client import OWNER_TOKEN
from tests.hub.folders import files_of, made, make_relaxed
from tests.hub.server import Hub

__all__ = ["made"]

BASE, REPO = "alice/base", "alice/net"


def weights(seed: int) -> bytes:
    torch.manual_seed(seed)
    return save({key: value.contiguous() for key, value in tiny.Net().state_dict().items()}, {"format": "pt"})


def test_the_only_safetensors_file_is_the_checkpoint(logged_in: Hub) -> None:
    content = weights(1)
    first = logged_in.store.put(BASE, {"net.safetensors": content, "config.json": b"{}", "junk.pt": b"x"}).id
    opened = open_anywhere(f"hf://{BASE}")
    assert opened.origin is not None
    assert (opened.origin.repo, opened.origin.revision, opened.origin.file) == (BASE, first, "net.safetensors")
    assert opened.sha256 == hashlib.sha256(content).hexdigest()
    assert (opened.path.parent / "config.json").is_file()
    assert not logged_in.asked("junk.pt"), "only what is needed is downloaded"
    logged_in.store.put(BASE, {"other.safetensors": weights(2)})
    with pytest.raises(CheckpointError, match=r"found net.safetensors, other.safetensors: name the file"):
        open_anywhere(f"hf://{BASE}")
    assert open_anywhere(f"hf://{BASE}@{first}").sha256 == opened.sha256
    assert open_anywhere(f"hf://{BASE}/other.safetensors").sha256 != opened.sha256
    with pytest.raises(CheckpointError, match="no file 'othr.safetensors' .* other.safetensors"):
        open_anywhere(f"hf://{BASE}/othr.safetensors")


def test_a_repository_without_safetensors(logged_in: Hub) -> None:
    logged_in.store.put(BASE, {"net.pt": b"x"})
    with pytest.raises(CheckpointError, match=r"found none, but \.gitattributes, net\.pt"):
        open_anywhere(f"hf://{BASE}")


def test_pickles_need_trust_and_a_commit(logged_in: Hub, made: Path) -> None:
    commit = logged_in.store.put(BASE, {"net.pt": (made / "net.pt").read_bytes()}).id
    with pytest.raises(TrustError, match="only with `--trust-pickle` and a commit"):
        open_anywhere(f"hf://{BASE}/net.pt")
    with pytest.raises(TrustError, match="40 hex digits after @ for --trust-pickle"):
        open_anywhere(f"hf://{BASE}/net.pt", trust_pickle=True)
    assert not logged_in.asked("resolve/.*net.pt")
    assert open_anywhere(f"hf://{BASE}@{commit}/net.pt", trust_pickle=True).container == "state_dict"


def test_the_base_is_pinned_apart_from_the_relaxed_model(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    content = weights(1)
    commit = logged_in.store.put(BASE, {"net.safetensors": content}).id
    make_relaxed(f"hf://{BASE}", tmp_path / "relaxed", made / "task.py")
    base = read_relaxed(tmp_path / "relaxed").config.base
    digest = hashlib.sha256(content).hexdigest()
    assert (base["repo"], base["file"], base["revision"], base["sha256"]) == (BASE, "net.safetensors", commit, digest)
    pushed = push_to_hub(tmp_path / "relaxed", REPO)
    logged_in.store.put(BASE, {"net.safetensors": weights(2)})  # the base moves on; the pinned one stays
    opened = package.from_hub(REPO, model=tiny.make_net)
    original, checkpoint = opened.original()
    assert opened.origin is not None
    assert checkpoint.origin is not None
    assert (opened.origin.revision, checkpoint.origin.revision) == (pushed.commit, commit)
    assert torch.equal(original.state_dict()["first.weight"], load_file(checkpoint.path)["first.weight"])


def test_a_base_with_another_hash_is_refused(logged_in: Hub, made: Path, tmp_path: Path) -> None:
    logged_in.store.put(BASE, {"net.safetensors": weights(1)})
    make_relaxed(f"hf://{BASE}", tmp_path / "relaxed", made / "task.py")
    config = tmp_path / "relaxed" / "surgeon_config.json"
    other = logged_in.store.put(BASE, {"net.safetensors": weights(2)}).id
    mine = read_relaxed(tmp_path / "relaxed").config.base["revision"]
    config.write_text(config.read_text().replace(mine, other))
    seal_folder(config.parent)
    with pytest.raises(CheckpointError, match="expected the original checkpoint with sha256"):
        open_path(tmp_path / "relaxed", OpenOptions(task=str(made / "task.py"))).original()


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_file_that_was_damaged_on_its_way(logged_in: Hub, made: Path, damage: str) -> None:
    push_to_hub(made / "relaxed", REPO)
    size = (made / "relaxed" / "model.safetensors").stat().st_size
    if damage == "flip":
        logged_in.faults.flip_bit("model.safetensors", size - 1)
    else:
        logged_in.faults.truncate("model.safetensors", size - 1)
    with pytest.raises(HubError, match="give the same command again"):
        package.from_hub(REPO, model=tiny.make_net)
    logged_in.faults.clear()
    assert package.from_hub(REPO, model=tiny.make_net).relaxation is not None


def test_a_small_file_that_was_damaged_on_its_way(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "relaxed", REPO)
    logged_in.faults.flip_bit("surgeon_config.json", 5)
    with pytest.raises(HubError, match="surgeon_config.json .* is not what the Hub announced"):
        package.from_hub(REPO, model=tiny.make_net)


def test_a_download_that_breaks_off_is_resumed(logged_in: Hub, made: Path) -> None:
    push_to_hub(made / "relaxed", REPO)
    logged_in.faults.die_in_download("relaxation.safetensors", 100, times=50)
    with pytest.raises(HubError, match="give the same command again"):
        package.from_hub(REPO, model=tiny.make_net)
    logged_in.faults.clear()
    assert package.from_hub(REPO, model=tiny.make_net).relaxation is not None


def test_without_network_and_with_a_warm_cache(logged_in: Hub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = push_to_hub(made / "relaxed", REPO)
    package.from_hub(REPO, model=tiny.make_net)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    logged_in.unplug()
    before = len(logged_in.requests)
    opened = package.from_hub(REPO, model=tiny.make_net)
    assert opened.origin is not None
    assert opened.origin.revision == pushed.commit
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        package.from_hub("alice/unknown", model=tiny.make_net)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push_to_hub(made / "relaxed", REPO)
    assert len(logged_in.requests) == before


def test_a_cache_that_was_changed_is_noticed_offline(
    logged_in: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(made / "relaxed", REPO)
    blob = package.from_hub(REPO, model=tiny.make_net).path.joinpath("model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="is not what the Hub announced"):
        package.from_hub(REPO, model=tiny.make_net)


def test_no_server_at_all(logged_in: Hub) -> None:
    logged_in.unplug()
    with pytest.raises(HubError, match="cannot be reached"):
        package.from_hub(REPO, model=tiny.make_net)


def test_a_private_repository(logged_in: Hub, made: Path, monkeypatch: pytest.MonkeyPatch, surgeon: Surgeon) -> None:
    logged_in.store.create(REPO, "alice", private=True)
    push_to_hub(made / "relaxed", REPO)
    assert package.from_hub(REPO, model=tiny.make_net).relaxation is not None
    for token in ("", "hf_wrong_token_of_nobody"):
        monkeypatch.setenv("HF_TOKEN", token)
        failed = surgeon("inspect", f"hf://{REPO}", "--model", "task:make_net", code=2)
        assert "hf auth login" in failed.err
        assert failed.err.count("\n") == 1
        for secret in (OWNER_TOKEN, "hf_wrong"):
            assert secret not in failed.err + failed.out


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"hf://{REPO}@nowhere", "no such branch, tag or commit: check what follows the @; branches are main"),
        ("hf://alice/unknown", "no such repository"),
        (f"hf://{REPO}@" + "0" * 40, "no such branch, tag or commit"),
    ],
)
def test_what_does_not_exist(logged_in: Hub, surgeon: Surgeon, path: str, words: str) -> None:
    logged_in.store.put(REPO, {"net.safetensors": weights(1)})
    failed = surgeon("inspect", path, "--task", "task.py", code=2)
    assert words in failed.err
    assert failed.err.count("\n") == 1


@pytest.mark.parametrize("path", ["hf://", "hf://alice", "hf://alice/net@../x", "hf://alice/net/../x", "hf://a b/c"])
def test_paths_that_are_none(logged_in: Hub, path: str) -> None:
    with pytest.raises((UsageError, CheckpointError)):
        open_path(path)
    assert not logged_in.requests


def test_commands_take_paths_on_the_hub(logged_in: Hub, made: Path, surgeon: Surgeon) -> None:
    commit = logged_in.store.put(BASE, {"net.safetensors": weights(1)}).id
    surgeon("relax", f"hf://{BASE}", "--task", "task.py")
    assert (surgeon.path / "base-relaxed").is_dir()
    surgeon("push", "base-relaxed", REPO)
    shown = surgeon("inspect", f"hf://{REPO}", "--task", "task.py", "--json").data
    assert shown["path"] == f"hf://{REPO}@{logged_in.store.repos[REPO].head.id}"
    surgeon("finetune", f"hf://{REPO}", "--task", "task.py", "--epochs", "1")
    assert (surgeon.path / "net-run").is_dir()
    surgeon("strip", "net-run", "--task", "task.py")
    surgeon("verify", "net-clean", "--against", f"hf://{BASE}@{commit}", "--task", "task.py")
    surgeon("strip", f"hf://{REPO}", "--task", "task.py", "-o", "clean", "--metrics", "none")
    surgeon("pull", f"hf://{REPO}", "-o", "pulled")
    assert (surgeon.path / "pulled" / "surgeon_config.json").is_file()


def test_a_task_in_the_repository_is_never_run(logged_in: Hub, made: Path, surgeon: Surgeon) -> None:
    push_to_hub(made / "relaxed", REPO)
    evil = b"raise SystemExit('run')\n"
    logged_in.store.put(REPO, {"task.py": evil})
    logged_in.store.put(BASE, {"net.safetensors": weights(1), "task.py": evil})
    for repo in (REPO, BASE):
        failed = surgeon("inspect", f"hf://{repo}", code=2)
        assert "nothing says how to build the model" in failed.err
    pulled = pull(f"hf://{REPO}", surgeon.path / "pulled")
    assert pulled.left_out == (".gitattributes", "task.py")
    assert "task.py" not in files_of(surgeon.path / "pulled")
