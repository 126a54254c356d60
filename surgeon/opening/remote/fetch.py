"""Download what is needed from the Hub through the client's cache, and check it against what the Hub announced."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from surgeon.errors import CheckpointError, HubError, TrustError
from surgeon.files.address import HubPath, is_hub_path
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import CARD_FILE, CERTIFICATE_FILE, CLEAN
from surgeon.files.content import sha256_of_file
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import BASE_FILE, BRANCH_FILE, CONFIG_FILE, RELAXED, STATE
from surgeon.opening.remote.client import HubFile, Listing, hub_errors, is_offline, list_files
from surgeon.support.imports import close_names

WEIGHTS = ".safetensors"
LARGEST_JSON = 64 * 2**20

_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def open_anywhere(path: str | Path | HubPath, *, trust_pickle: bool = False, entry: str | None = None) -> Checkpoint:
    """Open a checkpoint file, local or on the Hub; as :func:`surgeon.files.reading.open_checkpoint`.

    Raises:
        CheckpointError: as there; if the repository does not say which file is meant.
        TrustError: if a file on the Hub may hold code and is not trusted, or its revision is not a commit.
        HubError: if it cannot be downloaded, or is not what the Hub announced.
    """
    if not isinstance(path, HubPath) and not is_hub_path(path):
        return open_checkpoint(path, trust_pickle=trust_pickle, entry=entry)
    address = path if isinstance(path, HubPath) else HubPath.parse(path)
    if trust_pickle:
        address.require_pinned("--trust-pickle")
    return open_listed(list_files(address), trust_pickle=trust_pickle, entry=entry)


def open_listed(listing: Listing, *, trust_pickle: bool = False, entry: str | None = None) -> Checkpoint:
    """Download and open the checkpoint of a repository: the file named, else the only safetensors file."""
    name = _checkpoint_name(listing, trust_pickle)
    beside = [f"{name}.model.json", (Path(name).parent / "config.json").as_posix()]
    folder = download(listing, [name, *(other for other in beside if other in listing.files)])
    checkpoint = open_checkpoint(folder / name, trust_pickle=trust_pickle, entry=entry)
    return replace(checkpoint, origin=HubPath(listing.path.repo, listing.commit, name))


def _checkpoint_name(listing: Listing, trust_pickle: bool) -> str:
    """Return the name of the checkpoint file; one that may hold code needs trust."""
    name = listing.path.file
    if name is None:
        found = [file for file in listing.files if file.endswith(WEIGHTS)]
        if len(found) != 1:
            listed = ", ".join(found[:10]) or f"none, but {', '.join(list(listing.files)[:10]) or 'nothing'}"
            raise CheckpointError(
                f"expected one safetensors file in {listing.path}, found {listed}: name the file after the repository"
            )
        return found[0]
    if name not in listing.files:
        raise CheckpointError(
            f"there is no file {name!r} in {listing.pinned}: it holds {close_names(name, list(listing.files))}"
        )
    if not name.endswith(WEIGHTS) and not trust_pickle:
        raise TrustError(
            f"expected a safetensors file, got {listing.path}: other files may run code when opened, so one from the "
            "Hub is opened only with `--trust-pickle` and a commit after the @"
        )
    return name


def fetch_relaxed(listing: Listing) -> Path:
    """Download the configuration and the weights of a relaxed model, nothing else; return the folder in the cache.

    Raises:
        CheckpointError: if a file is missing from the repository.
        HubError: if one cannot be downloaded, or is not what the Hub announced.
    """
    names = (CONFIG_FILE, BASE_FILE, BRANCH_FILE)
    absent = [name for name in names if name not in listing.files]
    if absent:
        raise CheckpointError(
            f"expected a relaxed model in {listing.path}, but it lacks {', '.join(absent)}: it holds "
            f"{', '.join(list(listing.files)[:10])}"
        )
    return download(listing, names)


def fetch_model(path: str | Path) -> Path:
    """Return a folder: a local one as it is, a repository on the Hub from the cache.

    Raises:
        CheckpointError: if the repository holds no model that ``surgeon push`` uploaded.
        HubError: if it cannot be downloaded.
    """
    if not is_hub_path(path):
        return Path(path)
    listing = list_files(HubPath.parse(path))
    return download(listing, wanted_files(listing))


def wanted_files(listing: Listing) -> list[str]:
    """Return the files of a repository that surgeon reads.

    Raises:
        CheckpointError: if it holds no model that ``surgeon push`` uploaded.
    """
    relaxed = CONFIG_FILE in listing.files
    if not relaxed and CERTIFICATE_FILE not in listing.files:
        raise CheckpointError(
            f"expected a model that was pushed by `surgeon push` in {listing.path}, it holds "
            f"{', '.join(list(listing.files)[:10]) or 'nothing'}: give its path to `surgeon relax` as it is"
        )
    chosen = (*RELAXED, *STATE, CARD_FILE) if relaxed else (*CLEAN, CARD_FILE)
    return [name for name in chosen if name in listing.files]


def download(listing: Listing, names: Iterable[str]) -> Path:
    """Bring files into the client's cache and check each against what the Hub announced.

    Args:
        listing: the repository at one commit.
        names: of files in it.

    Returns:
        The folder of that commit in the cache.

    Raises:
        HubError: if the download fails; a file that is damaged is removed from the cache.
    """
    wanted = list(names)
    _check_sizes(listing, wanted)
    folder = listing.folder or _download(listing, wanted)
    for name in wanted:
        _check(folder, listing.files[name], listing)
    return folder


def _check_sizes(listing: Listing, names: list[str]) -> None:
    for name in names:
        size = listing.files[name].size
        if name.endswith((".json", ".jsonl", ".md")) and size is not None and size > LARGEST_JSON:
            raise HubError(
                f"expected at most {LARGEST_JSON:,} bytes of {name} in {listing.path}, the Hub announces {size:,}: "
                "it was not downloaded"
            )


def _download(listing: Listing, names: list[str]) -> Path:
    """Return the folder in the cache."""
    from huggingface_hub import hf_hub_download

    repo = listing.path.repo
    with hub_errors(f"download {listing.path}"):
        # By the name that was asked for, so that the cache remembers which commit it was when it is offline; where that
        # has changed since, by the commit.
        hf_hub_download(repo, names[0], revision=listing.path.revision)
        paths = {name: Path(hf_hub_download(repo, name, revision=listing.commit)) for name in names}
    return paths[names[0]].parents[len(PurePosixPath(names[0]).parts) - 1]


def _check(folder: Path, file: HubFile, listing: Listing) -> None:
    path = folder / file.name
    blob = path.resolve()
    if not path.is_file():
        advice = "unset HF_HUB_OFFLINE" if is_offline() else "give the same command again"
        raise HubError(f"expected {file.name} of {listing.path} in the cache, but it is not there: {advice}")
    if not blob.is_relative_to(folder.resolve().parent.parent):
        raise HubError(
            f"expected {file.name} of {listing.path} inside the cache, but it is a link to somewhere else: "
            "delete the repository from the cache"
        )
    if not _as_announced(blob, _with_name_of(blob, file)):
        for damaged in (blob, path):
            with suppress(OSError):
                damaged.unlink()
        raise HubError(
            f"{file.name} of {listing.path} is not what the Hub announced (size or hash differ), so it was damaged on "
            "its way or replaced: it was removed from the cache, give the same command again"
        )


def _with_name_of(blob: Path, file: HubFile) -> HubFile:
    """Take the hash from the blob's name in the cache, if the Hub was not asked: the client names it so."""
    if file.sha256 or file.git_hash:
        return file
    sha256 = blob.name if _SHA256.fullmatch(blob.name) else None
    return replace(file, sha256=sha256, git_hash=blob.name if _SHA1.fullmatch(blob.name) else None)


def _as_announced(path: Path, file: HubFile) -> bool:
    if file.size is not None and path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return sha256_of_file(path) == file.sha256
    return file.git_hash is None or git_hash(path.read_bytes()) == file.git_hash


def git_hash(content: bytes) -> str:
    """Return the hash by which Git, and so the Hub, knows a file that is not stored with Git LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
