"""A small repository, for the tests in this folder."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

NAME = "alice/net"
CONFIG = b'{"format_version": 1}\n'
WEIGHTS = bytes(range(256)) * 1000
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


def commit(api: HfApi, files: dict[str, bytes], parent: str | None = None, revision: str | None = None) -> str:
    """Commit files to ``NAME`` and return the id of the commit."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(NAME, operations, commit_message="change", parent_commit=parent, revision=revision).oid


def contents(folder: str) -> dict[str, bytes]:
    """Return the files of a snapshot, but for the one that every repository has."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
