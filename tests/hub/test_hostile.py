"""Repositories made to harm: each is refused in one sentence, nothing is run, nothing is written elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from surgeon.files.content import json_text
from surgeon.files.relaxed import read_relaxed
from surgeon.hub.content import without_paths
from tests.commands import Surgeon, files_in
from tests.hub.folders import files_of, made
from tests.hub.server import Hub

__all__ = ["made"]

REPO = "mallory/net"
Files = dict[str, bytes]


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def configured(files: Files, change: Callable[[dict[str, Any]], None]) -> Files:
    config = json.loads(files["surgeon_config.json"])
    change(config)
    return {**files, "surgeon_config.json": json.dumps(config).encode()}


def every_site(**values: Any) -> Callable[[Files, Path], Files]:
    def change(config: dict[str, Any]) -> None:
        for site in config["plan"]["sites"]:
            site.update(values)

    return lambda files, trace: configured(files, change)


def setting(*place: str, value: Any) -> Callable[[Files, Path], Files]:
    def change(config: dict[str, Any]) -> None:
        for name in place[:-1]:
            config = config[name]
        config[place[-1]] = value

    return lambda files, trace: configured(files, change)


def headed(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def with_header(header: str, data: bytes = b"") -> Callable[[Files, Path], Files]:
    return lambda files, trace: {**files, "model.safetensors": headed(header, data)}


def poisoned(name: str, value: float) -> Callable[[Files, Path], Files]:
    def change(files: Files, trace: Path) -> Files:
        tensors = load(files[name])
        max(tensors.values(), key=torch.numel).view(-1)[0] = value
        return {**files, name: save(tensors, {"format": "pt"})}

    return change


def bombed(name: str) -> Callable[[Files, Path], Files]:
    return lambda files, trace: {**files, name: pickle.dumps({"weight": Bomb(trace)})}


def twice(files: Files, trace: Path) -> Files:
    text = files["surgeon_config.json"].decode()
    return {**files, "surgeon_config.json": text.replace('"step":', '"step": 1, "step":').encode()}


def larger_plan(files: Files, trace: Path) -> Files:
    def change(config: dict[str, Any]) -> None:
        config["plan"]["sites"][0]["shape"] = [10**9, 10**9]

    return configured(files, change)


F32 = '"dtype":"F32"'
FOUR_BYTES = f'{{{F32},"shape":[1],"data_offsets":[0,4]}}'
TRACE = "tests.hub.test_hostile:leave_trace"
HUB_BASE = {"repo": "a/b", "file": "x", "entry": None, "revision": "0" * 40, "sha256": "", "keys_hash": ""}
HUB_BASE |= {"container": "safetensors", "pickle": False}
CODE = "x = 1; import os; os.mkdir('trace')"
CASES: dict[str, tuple[Callable[[Files, Path], Files], str]] = {
    "pickle under a safe name": (bombed("model.safetensors"), "as safetensors"),
    "pickle as branches": (bombed("relaxation.safetensors"), "as safetensors"),
    "pickle as configuration": (bombed("surgeon_config.json"), "as JSON"),
    "10^18 elements": (
        with_header(f'{{"w":{{{F32},"shape":[1000000000,1000000000],"data_offsets":[0,4]}}}}', b"0000"),
        "in 4 bytes",
    ),
    "10^18 elements announced": (
        with_header(f'{{"w":{{{F32},"shape":[{10**18}],"data_offsets":[0,{4 * 10**18}]}}}}', b"0000"),
        "announced, 4 there",
    ),
    "a header of 2^60 bytes": (
        lambda files, trace: {**files, "model.safetensors": struct.pack("<Q", 2**60) + b"{}"},
        "a header of",
    ),
    "duplicate names in a header": (
        with_header(f'{{"w":{FOUR_BYTES},"w":{FOUR_BYTES}}}', b"0000"),
        "'w' twice",
    ),
    "overlapping tensors": (
        with_header(f'{{"v":{FOUR_BYTES},"w":{FOUR_BYTES}}}', b"0000"),
        "overlap",
    ),
    "negative sizes": (with_header(f'{{"w":{{{F32},"shape":[-1],"data_offsets":[0,4]}}}}', b"0000"), "unusable shape"),
    "deeply nested header": (with_header("[" * 100_000), "as safetensors"),
    "deeply nested configuration": (
        lambda files, trace: {**files, "surgeon_config.json": b"[" * 100_000},
        "as JSON",
    ),
    "duplicate keys in the configuration": (twice, "'step' twice"),
    "newer format": (setting("format_version", value=99), "update equisurgeon"),
    "NaN in the weights": (poisoned("model.safetensors", float("nan")), "NaN or infinity"),
    "infinity in the weights": (poisoned("model.safetensors", float("inf")), "NaN or infinity"),
    "NaN in a branch": (poisoned("relaxation.safetensors", float("nan")), "NaN or infinity"),
    "site outside": (every_site(name="../../outside"), "names of modules and arguments"),
    "site with code": (every_site(name="first'); " + CODE + "#"), "names of modules and arguments"),
    "argument with code": (every_site(argument='features"); ' + CODE + "#"), "names of modules and arguments"),
    "absolute site": (every_site(name="/etc/passwd"), "/etc/passwd"),
    "plan's group that is code": (
        setting("plan", "group", value=TRACE),
        "which is code",
    ),
    "factory that is code": (
        setting("model", value={"factory": TRACE, "args": {}}),
        "no installed package registers",
    ),
    "task that is code": (
        setting("task", value={"path": TRACE, "sha256": "", "args": {}}),
        "nothing says how to build",
    ),
    "base outside": (setting("base", "file", value="../../secret.pt"), "is a path"),
    "base on the Hub outside": (
        setting("base", value={**HUB_BASE, "file": "../x"}),
        "inside their folder",
    ),
    "base not pinned": (
        setting("base", value={**HUB_BASE, "revision": "main"}),
        "commit of 40 hex digits",
    ),
    "a plan of 10^18 parameters": (larger_plan, "parameters of the branch"),
    "file name outside": (lambda files, trace: {**files, "../outside.json": b"{}"}, "inside their folder"),
    "absolute file name": (lambda files, trace: {**files, "/tmp/outside.json": b"{}"}, "inside their folder"),
}


def leave_trace() -> None:
    raise AssertionError("code of the repository was run")


@pytest.fixture
def harmless(made: Path) -> Files:
    """What a push of the relaxed folder leaves in a repository."""
    files = files_of(made / "relaxed")
    config = without_paths(read_relaxed(made / "relaxed").config)
    return {**files, "surgeon_config.json": json_text(config.to_data()).encode()}


HARMLESS_IN_A_FILE = ("absolute site", "factory that is code", "task that is code")
"""A pull takes over no task and builds no model, and names that no module has do nothing."""


@pytest.mark.parametrize(
    ("case", "command"),
    [*((case, "inspect") for case in CASES), *((case, "pull") for case in CASES if case not in HARMLESS_IN_A_FILE)],
)
def test_it_is_refused_in_one_sentence(
    logged_in: Hub, harmless: Files, surgeon: Surgeon, case: str, command: str
) -> None:
    change, words = CASES[case]
    trace = surgeon.path / "trace"
    logged_in.store.put(REPO, change(harmless, trace))
    before = files_in(surgeon.path)
    outside = {*surgeon.path.parent.iterdir(), surgeon.path.parent / "hf-home"}
    if command == "pull":
        arguments = ["pull", f"hf://{REPO}", "-o", "pulled"]
    elif case.startswith(("factory", "task")):
        arguments = ["inspect", f"hf://{REPO}"]
    else:
        arguments = ["inspect", f"hf://{REPO}", "--model", "task:make_net"]
    refused = surgeon(*arguments, code=2)
    assert words in refused.err, refused.err
    assert refused.err.count("\n") == 1
    assert files_in(surgeon.path) == before
    assert not trace.exists()
    assert not (surgeon.path / "pulled").exists()
    assert set(surgeon.path.parent.iterdir()) <= outside


def test_the_same_repository_unchanged_is_opened(logged_in: Hub, harmless: Files, surgeon: Surgeon) -> None:
    logged_in.store.put(REPO, harmless)
    surgeon("inspect", f"hf://{REPO}", "--model", "task:make_net")
    surgeon("pull", f"hf://{REPO}", "-o", "pulled")
    assert (surgeon.path / "pulled" / "model.safetensors").read_bytes() == harmless["model.safetensors"]


def test_code_needs_a_commit(logged_in: Hub, harmless: Files, surgeon: Surgeon) -> None:
    files = setting("model", value={"factory": "task:make_net", "args": {}})(harmless, surgeon.path)
    commit = logged_in.store.put(REPO, files).id
    refused = surgeon("inspect", f"hf://{REPO}", "--trust-remote-code", code=2)
    assert "40 hex digits" in refused.err
    surgeon("inspect", f"hf://{REPO}@{commit}", "--trust-remote-code")


def test_a_pulled_task_is_forgotten(logged_in: Hub, harmless: Files, surgeon: Surgeon) -> None:
    change = setting("task", value={"path": TRACE, "sha256": "", "args": {}})
    logged_in.store.put(REPO, change(harmless, surgeon.path))
    surgeon("pull", f"hf://{REPO}", "-o", "pulled")
    assert read_relaxed(surgeon.path / "pulled").config.task is None


def test_weights_may_be_nan_where_those_of_the_base_are(logged_in: Hub, harmless: Files, surgeon: Surgeon) -> None:
    tensors = load(harmless["model.safetensors"])
    max(tensors.values(), key=torch.numel).view(-1)[0] = float("nan")
    content = save(tensors, {"format": "pt"})
    base = logged_in.store.put("alice/base", {"net.safetensors": content}).id

    place = {
        "repo": "alice/base",
        "revision": base,
        "file": "net.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    config = json.loads(harmless["surgeon_config.json"])
    config["base"] |= place
    files = {**harmless, "model.safetensors": content, "surgeon_config.json": json.dumps(config).encode()}
    logged_in.store.put(REPO, files)
    assert surgeon("inspect", f"hf://{REPO}", "--model", "task:make_net", "--json").data["model"] == "Net"


def test_a_link_in_the_cache_to_somewhere_else(logged_in: Hub, harmless: Files, surgeon: Surgeon) -> None:
    logged_in.store.put(REPO, harmless)
    surgeon("inspect", f"hf://{REPO}", "--model", "task:make_net")
    (config,) = (surgeon.path.parent / "hf-home").rglob("surgeon_config.json")
    (surgeon.path / "mine.json").write_bytes(config.read_bytes())
    config.unlink()
    config.symlink_to(surgeon.path / "mine.json")
    refused = surgeon("inspect", f"hf://{REPO}", "--model", "task:make_net", code=2)
    assert "is a link to somewhere else" in refused.err


def test_the_bomb_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trace")))
    assert (tmp_path / "trace").is_dir()
