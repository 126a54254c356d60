"""Paths on the Hub as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgeon.errors import TrustError, UsageError
from surgeon.files.address import HubPath, check_name, is_hub_path

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("hf://a/b", HubPath("a/b")),
        ("hf://a/b/", HubPath("a/b")),
        ("a/b", HubPath("a/b")),
        ("hf://a/b@v1.0", HubPath("a/b", "v1.0")),
        (f"hf://a/b@{COMMIT}/x/y.safetensors", HubPath("a/b", COMMIT, "x/y.safetensors")),
        ("hf://a/b/x@y", HubPath("a/b", None, "x@y")),
        ("hf://a/b@refs/pr/3/x", HubPath("a/b", "refs/pr/3", "x")),
        ("hf://a/b@feature%2Fone/x", HubPath("a/b", "feature/one", "x")),
    ],
)
def test_both_ways(text: str, path: HubPath) -> None:
    assert HubPath.parse(text) == HubPath.parse(str(path)) == path
    if is_hub_path(text):
        assert HubPath.parse(Path(text)) == path


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://a", "hf://a/", "hf:///b", "hf://a/../b", "hf://../b/c", "hf://a--b/c", "hf://a/b c"),
        *("hf://a/b@..", "hf://a/b@x%00", "hf://a/b@-x", "hf://a/b@x%2F..%2Fy", "hf://a/b/../x", "hf://a/b//x"),
        *("hf://a/b/x\\y", "hf://a/b/c:d", "hf://a/b/x\n", "hf://a/" + "b" * 97),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        HubPath.parse(text)


@pytest.mark.parametrize("name", ["", "/x", "x/", "../x", "x/../y", "./x", "C:x", "x\\y", "a" * 256, 3, None])
def test_names_that_leave_their_folder(name: object) -> None:
    with pytest.raises(UsageError, match="inside their folder"):
        check_name(name, "the listing")


def test_local_paths() -> None:
    assert not any(is_hub_path(path) for path in ("a/b", "./hf", "hf", "/hf://a/b", "C:/hf", "hf:a"))


def test_only_a_commit_is_pinned() -> None:
    HubPath("a/b", COMMIT).require_pinned("--trust-pickle")
    for revision in (None, "main", COMMIT[:39], COMMIT.replace("0", "A")):
        with pytest.raises(TrustError, match="replaced tomorrow"):
            HubPath("a/b", revision).require_pinned("--trust-pickle")
