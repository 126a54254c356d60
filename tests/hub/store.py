"""What the loopback Hub keeps: repositories of commits, each a full map from paths to file contents, in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from functools import cached_property

MAIN = "main"
ATTRIBUTES = b"".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for suffix in ("bin", "ckpt", "model", "npz", "onnx", "pt", "pth", "safetensors", "zip")
)
FIRST_SECOND = datetime(2024, 1, 1, tzinfo=UTC)


class HubError(Exception):
    """An answer other than success; ``code`` is what the client chooses its exception by."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """The content of one file, and whether git holds it itself or a pointer to large file storage."""

    data: bytes = field(repr=False)
    lfs: bool = False

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @cached_property
    def oid(self) -> str:
        """Git's name of the blob: of the pointer, for a large file."""
        return git_sha1(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    parent: Commit | None = field(repr=False)
    files: Mapping[str, Blob]
    title: str
    message: str
    author: str
    date: str

    def history(self) -> Iterator[Commit]:
        """Yield this commit and those before it, the newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last_change(self, path: str) -> Commit:
        """Return the commit that gave a file its present content."""
        found = self
        for commit in self.history():
            if commit.files.get(path) != self.files[path]:
                break
            found = commit
        return found


@dataclass
class Discussion:
    num: int
    title: str
    description: str
    author: str
    date: str
    pull_request: bool
    status: str
    merged_as: str | None = None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repo:
    id: str
    private: bool
    date: str
    gated: str | bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    pull_requests: dict[str, Commit] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    large_files: dict[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.branches[MAIN]

    def may_read(self, user: str | None) -> bool:
        """Whether ``user`` (None: not logged in) can see that the repository exists."""
        return not self.private or user == self.owner or user in self.readers

    def may_download(self, user: str | None) -> bool:
        return not self.gated or user == self.owner or user in self.readers

    def moving_ref(self, name: str) -> dict[str, Commit]:
        """Return the table in which a commit can move ``name``: that of branches or that of pull requests."""
        for table in (self.branches, self.pull_requests):
            if name in table:
                return table
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")

    def resolve(self, revision: str) -> Commit:
        """Return the commit that a branch, tag, reference or (shortened) id stands for."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for table in (self.branches, self.tags, self.pull_requests):
            if name in table:
                return table[name]
        found = [commit for id, commit in self.commits.items() if len(revision) >= 7 and id.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def is_large(self, path: str, size: int, revision: str) -> bool:
        """Whether a new file belongs in large file storage, by ``.gitattributes`` and size."""
        rules = self.resolve(revision).files.get(".gitattributes", Blob(b"")).data.decode().splitlines()
        patterns = [rule.split()[0] for rule in rules if "filter=lfs" in rule.split()]
        return size > 10_000_000 or any(fnmatch(path.split("/")[-1], pattern) for pattern in patterns)


class Store:
    """All repositories, and a clock that advances by one second whenever it is read."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self._seconds = 0

    def now(self) -> str:
        self._seconds += 1
        return (FIRST_SECOND + timedelta(seconds=self._seconds)).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def create(self, id: str, author: str, private: bool = False) -> Repo:
        self.moved.pop(id, None)
        repo = self.repos[id] = Repo(id, private, self.now())
        repo.branches[MAIN] = self.write(repo, None, {".gitattributes": Blob(ATTRIBUTES)}, "initial commit", "", author)
        return repo

    def write(
        self, repo: Repo, parent: Commit | None, files: Mapping[str, Blob], title: str, message: str, author: str
    ) -> Commit:
        """Write a commit that no reference points to yet."""
        date = self.now()
        names = {path: blob.oid for path, blob in files.items()}
        text = json.dumps([repo.id, parent.id if parent else None, names, title, message, author, date])
        id = hashlib.sha1(text.encode()).hexdigest()
        commit = repo.commits[id] = Commit(id, parent, dict(sorted(files.items())), title, message, author, date)
        return commit

    def put(self, id: str, files: Mapping[str, bytes], branch: str = MAIN, title: str = "put") -> Commit:
        """Commit files as they are, past the checks of the API, which is how a hostile repository is made."""
        repo = self.repos[id] if id in self.repos else self.create(id, id.split("/")[0])
        parent = repo.branches[branch]
        blobs = {path: Blob(data, repo.is_large(path, len(data), branch)) for path, data in files.items()}
        repo.large_files.update({blob.sha256: blob.data for blob in blobs.values() if blob.lfs})
        repo.branches[branch] = self.write(repo, parent, {**parent.files, **blobs}, title, "", repo.owner)
        return repo.branches[branch]
