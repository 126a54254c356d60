"""What is asked of the Hub through its own client, with errors as one sentence that holds no URL and no token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import HubError, SurgeonError
from surgeon.files.address import HubPath, check_name, is_commit

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "log in with `hf auth login` or set HF_TOKEN"

_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{4,}|(?<=Bearer )\S+|(?<=://)[^/\s@]+@")
_SHORTENED = re.compile(r"\(…\)\S*")  # the client's way to write the end of a long URL
_URL = re.compile(r"(https?://[^\s?#'\"]+)[?#][^\s'\"]*")


class RepositoryMissing(HubError):
    """There is no such repository, or not for this token."""


class RevisionMissing(HubError):
    """The repository has no such branch, tag or commit."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        name: relative, with slashes.
        size: bytes; None if offline.
        sha256: of its bytes if it is stored with Git LFS.
        git_hash: of its bytes as a Git blob, if it is not.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    git_hash: str | None = None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        commit: 40 hex digits.
        private: whether others can see it; None if offline.
        folder: the snapshot in the cache, if offline.
    """

    path: HubPath
    commit: str
    files: Mapping[str, HubFile]
    private: bool | None = None
    folder: Path | None = None

    @property
    def pinned(self) -> HubPath:
        """The same path at its commit."""
        return HubPath(self.path.repo, self.commit, self.path.file)


def api() -> HfApi:
    """Return the Hub's client; token and endpoint come from the environment, as for every program that uses it."""
    from huggingface_hub import HfApi

    return HfApi(library_name="equisurgeon", library_version=version("equisurgeon"))


def is_offline() -> bool:
    """Tell whether the user has switched the network off (``HF_HUB_OFFLINE=1``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def list_files(path: HubPath) -> Listing:
    """Resolve a revision to its commit, once, and list the files.

    Raises:
        HubError: if repository or revision do not exist, are not in the cache when offline, or a name is unsafe.
    """
    if is_offline():
        return _list_cached(path)
    try:
        with hub_errors(f"look up {path}"):
            info = api().model_info(path.repo, revision=path.revision, files_metadata=True)
    except RevisionMissing as error:
        raise RevisionMissing(f"{error}; {_revisions(path)}") from None
    if not is_commit(info.sha):
        raise HubError(f"expected a commit of 40 hex digits from the Hub for {path}, got {info.sha!r}: try again")
    files = {}
    for sibling in info.siblings or ():
        name = check_name(sibling.rfilename, str(path))
        lfs = sibling.lfs
        files[name] = HubFile(name, sibling.size, lfs.sha256 if lfs else None, None if lfs else sibling.blob_id)
    return Listing(path, str(info.sha), files, info.private)


def _revisions(path: HubPath) -> str:
    """Say which branches and tags a repository has."""
    with hub_errors(f"list the branches of {path}"):
        refs = api().list_repo_refs(path.repo)
    kinds = (("branches", refs.branches), ("tags", refs.tags))
    return " and ".join(f"{kind} are {', '.join(ref.name for ref in some[:10])}" for kind, some in kinds if some)


def _list_cached(path: HubPath) -> Listing:
    from huggingface_hub import snapshot_download

    with hub_errors(f"find {path} in the cache"):
        folder = Path(snapshot_download(path.repo, revision=path.revision, local_files_only=True, allow_patterns=[]))
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return Listing(path, folder.name, {name: HubFile(name) for name in names}, folder=folder)


def scrubbed(text: str) -> str:
    """Return one line without tokens and without the query part of URLs, where storage servers put signatures."""
    return _SHORTENED.sub("...", _URL.sub(r"\1", _TOKEN.sub("***", " ".join(text.split()))))


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises while ``doing`` ("look up hf://...") into a :class:`HubError` of one sentence.

    The original error is not chained: its text holds signed URLs.
    """
    try:
        yield
    except SurgeonError:
        raise
    except Exception as error:
        raise _kind_of(error)(f"could not {doing}: {_reason(error)}") from None


def _kind_of(error: Exception) -> type[HubError]:
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return RevisionMissing
    missing = isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError)
    return RepositoryMissing if missing else HubError


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"it is open only to those who accept its conditions: do so on its page, and {LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hub has no such repository, or shows it to others only: check the name, or {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such branch, tag or commit: check what follows the @"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the network is switched off (HF_HUB_OFFLINE): unset it"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if is_offline():
            return (
                "the network is switched off (HF_HUB_OFFLINE) and the cache does not hold it: unset it, or open it once"
            )
        return "the Hub cannot be reached or broke off: check the network and give the same command again"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repository has no such file at this commit: check the name"
    if isinstance(error, errors.HfHubHTTPError):
        return _status(error)
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0] in _TRANSPORTS:
        return f"the Hub cannot be reached or broke off ({type(error).__name__}): give the same command again to go on"
    if "Consistency check failed" in str(error):
        return "a file arrived with another size than the Hub announced: give the same command again"
    return f"{type(error).__name__}: {scrubbed(str(error))[:200] or 'no message'}"


_TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")

_STATUS = {
    401: f"the token is missing or not valid: {LOGIN}",
    403: "the token does not allow it: use one with write access to this repository",
    409: "the Hub reports a conflict with what is there already: look at the repository and choose another name",
    412: "somebody changed the repository meanwhile: look at what they did and give the same command again",
    413: "the Hub says that it is too large: leave files out",
    429: "the Hub asks to wait: give the same command again later",
}


def _status(error: Exception) -> str:
    code = getattr(getattr(error, "response", None), "status_code", 0)
    if code in _STATUS:
        return _STATUS[code]
    if code >= 500:
        return f"the Hub has a problem of its own (status {code}): give the same command again later"
    said = scrubbed(str(getattr(error, "server_message", "") or ""))[:200]
    return f"the Hub refuses (status {code}{f', {said}' if said else ''}): correct this and try again"
