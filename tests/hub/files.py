"""Files on the loopback Hub: uploads, commits, and downloads from it and from its large file storage."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.hub.store import Blob, Commit, Discussion, HubError, Repo
from tests.hub.web import Request, Response

if TYPE_CHECKING:
    from tests.hub.server import Hub

NO_ENTRY = "EntryNotFound"


def preupload(hub: Hub, request: Request, id: str, revision: str) -> Response:
    """Say for each file whether it goes to large file storage, and what the Hub has under its name."""
    repo = hub.open_repo(request, id, write=not request.flag("create_pr"))
    present = repo.resolve(revision).files
    files = []
    for file in request.data["files"]:
        path = file["path"]
        mode = "lfs" if repo.is_large(path, file["size"], revision) else "regular"
        oid = present[path].etag if path in present else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Response.json({"files": files})


def lfs_batch(hub: Hub, request: Request, id: str) -> Response:
    """Tell where to put large files; those that the repository has already get no action."""
    repo = hub.open_repo(request, id, log_in=True)
    objects = []
    for item in request.data["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in repo.large_files:
            upload = hub.sign(f"/{repo.id}/{item['oid']}")
            verify = f"{hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"
            answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(answer)
    return Response.json({"transfer": "basic", "objects": objects})


def lfs_verify(hub: Hub, request: Request, id: str) -> Response:
    repo = hub.open_repo(request, id, log_in=True)
    if len(repo.large_files.get(request.data["oid"], b"")) != request.data["size"]:
        raise HubError(404, "The object was not uploaded")
    return Response.json({"success": True})


def commit(hub: Hub, request: Request, id: str, revision: str) -> Response:
    """Write a commit to a branch, or to a new pull request."""
    create_pr = request.flag("create_pr")
    repo = hub.open_repo(request, id, write=not create_pr, log_in=True)
    hub.faults.strike("before commit", id)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = lines[0]["value"]
    parent = parent_of_commit(repo, revision, header.get("parentCommit"), create_pr)
    files = dict(parent.files)
    for line in lines[1:]:
        apply(repo, files, line["key"], line["value"])
    author = str(hub.user(request))
    new = hub.store.write(repo, parent, files, header["summary"], header.get("description", ""), author)
    answer = {
        "success": True,
        "commitOid": new.id,
        "commitUrl": f"{hub.endpoint}/{id}/commit/{new.id}",
        "hookOutput": "",
    }
    if create_pr:
        discussion = open_discussion(hub, repo, header["summary"], header.get("description", ""), author, "open")
        repo.pull_requests[discussion.ref] = new
        answer["pullRequestUrl"] = f"{hub.endpoint}/{id}/discussions/{discussion.num}"
    else:
        repo.moving_ref(revision)[revision] = new
    hub.faults.strike("after commit", id)
    return Response.json(answer)


def parent_of_commit(repo: Repo, revision: str, wanted: str | None, create_pr: bool) -> Commit:
    """Return the commit to build on, which a caller can insist on having seen.

    A pull request may start from an older commit; a branch may not have moved.
    """
    if create_pr:
        return repo.resolve(wanted or revision)
    head = repo.moving_ref(revision)[revision]
    if wanted and not head.id.startswith(wanted):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    return head


def apply(repo: Repo, files: dict[str, Blob], key: str, value: Mapping[str, Any]) -> None:
    """Apply one line of a commit to the map of files."""
    path = value["path"]
    if path.startswith("/") or not set(path.rstrip("/").split("/")).isdisjoint({"", ".", "..", ".git"}):
        raise HubError(400, f"Invalid path: {path}")
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in repo.large_files:
            raise HubError(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
        files[path] = Blob(repo.large_files[value["oid"]], lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HubError(404, f"A file with this name doesn't exist: {path}", NO_ENTRY)
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            raise HubError(404, f"A folder with this name doesn't exist: {path}", NO_ENTRY)
        for name in inside:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation: {key}")


def open_discussion(hub: Hub, repo: Repo, title: str, description: str, author: str, status: str = "") -> Discussion:
    """Open a discussion; with a status it is a pull request."""
    num = len(repo.discussions) + 1
    discussion = Discussion(num, title, description, author, hub.store.now(), bool(status), status or "open")
    repo.discussions.append(discussion)
    return discussion


def resolve(hub: Hub, request: Request, id: str, revision: str, path: str) -> Response:
    """Serve a file kept in git; send on to the other origin for a large one."""
    repo = hub.open_repo(request, id)
    if not repo.may_download(hub.user(request)):
        status = 401 if hub.user(request) is None else 403
        raise HubError(status, f"Access to model {id} is restricted.", "GatedRepo")
    found = repo.resolve(revision)
    headers = {"X-Repo-Commit": found.id, "Accept-Ranges": "bytes"}
    if path not in found.files:
        raise HubError(404, "Entry not found", NO_ENTRY, headers)
    blob = found.files[path]
    headers["ETag"] = f'"{blob.etag}"'
    if not blob.lfs:
        return download(hub, request, path, blob.data, headers)
    headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    headers["Location"] = hub.sign(f"/{repo.id}/{blob.sha256}") + f"&name={quote(path, safe='')}"
    return Response(302, b"", headers)


def download(hub: Hub, request: Request, path: str, data: bytes, headers: dict[str, str]) -> Response:
    """Return the content, or the range of it that was asked for, spoilt as the switches say."""
    if request.method == "HEAD":
        return Response(200, b"", {**headers, "Content-Length": str(len(data))})
    data = hub.faults.spoil(path, data)
    status = 200
    if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))) is not None:
        start, stop = int(asked[1]), min(int(asked[2] or len(data) - 1) + 1, len(data))
        if start >= len(data):
            raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
        status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        data = data[start:stop]
    fault = hub.faults.find("download", path)
    return Response(status, data, headers, dies_after=fault.at if fault else None)


def storage(hub: Hub, request: Request) -> Response:
    """Answer for large file storage: signed addresses, and never a token."""
    if "Authorization" in request.headers:
        raise HubError(400, "Only one auth mechanism allowed")
    owner, name, sha256 = request.path.strip("/").split("/")
    if request.query.get("signature") != [hub.signature(request.path)]:
        raise HubError(403, "Access denied")
    repo = hub.store.repos[f"{owner}/{name}"]
    if request.method == "PUT":
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise HubError(400, "The content does not have the checksum that was announced")
        repo.large_files[sha256] = request.body
        return Response(200, b"", {"ETag": f'"{sha256}"'})
    path = request.query.get("name", [sha256])[0]
    return download(hub, request, path, repo.large_files[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
