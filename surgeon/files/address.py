"""Paths on the Hub: ``hf://owner/name[@revision][/file]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from surgeon.errors import TrustError, UsageError

# One slash: what `pathlib` makes of two.
_SCHEME = re.compile(r"hf:/{1,2}(?=[^/])")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9_-])?")
_FORM = "hf://owner/name[@revision][/file]"
_LONGEST_NAME = 255


@dataclass(frozen=True)
class HubPath:
    """A repository on the Hub, or a file in it.

    Attributes:
        repo: ``owner/name``.
        revision: branch, tag, ``refs/pr/N`` or commit; None for the main branch.
        file: relative name with slashes; None for the repository.

    Example:
        >>> HubPath.parse("hf://owner/net@v1/weights/net.safetensors")
        HubPath(repo='owner/net', revision='v1', file='weights/net.safetensors')
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str | Path) -> HubPath:
        """Read ``hf://owner/name[@revision][/file]``; a slash in a revision is written ``%2F``.

        Raises:
            UsageError: if it is something else.
        """
        given = str(text)
        rest = _SCHEME.sub("", given, count=1) if is_hub_path(given) else given
        owner, _, rest = rest.partition("/")
        name, _, file = rest.partition("/")
        name, _, revision = name.partition("@")
        if revision == "refs" and (found := re.match(r"(pr/\d+)(?:/|$)(.*)", file)):
            revision, file = f"refs/{found[1]}", found[2]
        path = cls(check_repo(f"{owner}/{name}"), check_revision(unquote(revision)) if revision else None)
        return replace(path, file=check_name(file.rstrip("/"), str(path))) if file.rstrip("/") else path

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"hf://{self.repo}{revision}" + ("" if self.file is None else f"/{self.file}")

    @property
    def stem(self) -> str:
        """Name for outputs made from it: that of the file without its ending, else that of the repository."""
        return self.repo.split("/")[1] if self.file is None else PurePosixPath(self.file).stem

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, of which the content cannot change."""
        return is_commit(self.revision)

    def require_pinned(self, flag: str) -> None:
        """Refuse to trust content that can change.

        Raises:
            TrustError: if the revision is not a commit.
        """
        if not self.pinned:
            raise TrustError(
                f"expected a commit of 40 hex digits after @ for {flag}, got {str(self)!r}: what was checked today can "
                "be replaced tomorrow, so name the commit that you have looked at"
            )


def is_hub_path(path: str | Path) -> bool:
    """Tell whether a path begins with ``hf://``."""
    return _SCHEME.match(str(path)) is not None


def is_commit(revision: object) -> bool:
    """Tell whether a revision is a full commit hash."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def check_repo(repo: object) -> str:
    """Return a repository's name, ``owner/name``.

    Raises:
        UsageError: if it is none.
    """
    if not isinstance(repo, str) or not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or len(repo) > 96:
        raise UsageError(f"expected {_FORM}, got the repository {repo!r}: write its owner, a slash and its name")
    return repo


def check_revision(revision: object) -> str:
    """Return a revision: a branch, a tag, ``refs/pr/N`` or a commit.

    Raises:
        UsageError: if it cannot be one.
    """
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise UsageError(f"expected a branch, a tag or a commit as revision, got {revision!r}: correct it")
    return revision


def check_name(name: object, where: str) -> str:
    """Return a file's relative name if it stays inside its folder.

    Raises:
        UsageError: if it is absolute, goes up, or holds characters that no file here has.
    """
    unsafe = not isinstance(name, str) or not name or "\\" in name or ":" in name or not name.isprintable()
    if unsafe or any(part in ("", ".", "..") or len(part) > _LONGEST_NAME for part in str(name).split("/")):
        raise UsageError(f"expected names of files inside their folder in {where}, got {name!r}: it is not used")
    return str(name)
