"""The JSON answers of the loopback Hub: users, repositories, revisions, and discussions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from tests.hub.cards import card_errors, read_card
from tests.hub.files import NO_ENTRY, open_discussion
from tests.hub.store import MAIN, Blob, Commit, Discussion, HubError, Repo
from tests.hub.web import Request, Response

if TYPE_CHECKING:
    from tests.hub.server import Hub

NO_REVISION = "RevisionNotFound"


def whoami(hub: Hub, request: Request) -> Response:
    if request.token is None or (user := hub.user(request)) is None:
        raise HubError(401, "Invalid username or password.")
    role = hub.users[request.token].role
    access = {"displayName": "loopback", "role": role}
    auth = {"type": "access_token", "accessToken": access}
    return Response.json({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": auth})


def validate_yaml(hub: Hub, request: Request) -> Response:
    errors, warnings = card_errors(request.data["content"])
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Response.json(answer, 400 if errors else 200)


def create_repo(hub: Hub, request: Request) -> Response:
    wanted = request.data
    user = hub.writer(request)
    owner = wanted.get("organization") or user
    if owner != user:
        raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
    id = f"{owner}/{wanted['name']}"
    answer = {"url": f"{hub.endpoint}/{id}", "name": id}
    if id in hub.store.repos:
        return Response.json({**answer, "error": "You already created this model repo"}, 409)
    hub.store.create(id, user, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
    return Response.json(answer)


def delete_repo(hub: Hub, request: Request) -> Response:
    owner = request.data.get("organization") or hub.writer(request)
    repo = hub.open_repo(request, f"{owner}/{request.data['name']}", write=True)
    del hub.store.repos[repo.id]
    return Response.json({})


def move_repo(hub: Hub, request: Request) -> Response:
    repo = hub.open_repo(request, request.data["fromRepo"], write=True)
    new = request.data["toRepo"]
    if new in hub.store.repos:
        raise HubError(409, f"A model named {new} exists already")
    hub.store.repos[new], hub.store.moved[repo.id] = hub.store.repos.pop(repo.id), new
    hub.store.moved.pop(new, None)
    repo.id = new
    return Response.json({})


def change_settings(hub: Hub, request: Request, id: str) -> Response:
    repo = hub.open_repo(request, id, write=True)
    if "visibility" in request.data:
        repo.private = request.data["visibility"] == "private"
    repo.gated = request.data.get("gated", repo.gated)
    return Response.json({"private": repo.private})


def auth_check(hub: Hub, request: Request, id: str) -> Response:
    repo = hub.open_repo(request, id)
    if not repo.may_download(hub.user(request)):
        raise HubError(403, f"Access to model {id} is restricted.", "GatedRepo")
    return Response.json({})


def model_info(hub: Hub, request: Request, id: str, revision: str = MAIN) -> Response:
    """Describe a model at a revision; with ``expand``, only the properties that were asked for."""
    repo = hub.open_repo(request, id)
    commit = repo.resolve(revision)
    card = read_card(commit.files.get("README.md"))
    info: dict[str, Any] = {
        "sha": commit.id,
        "author": repo.owner,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "createdAt": repo.date,
        "lastModified": commit.date,
        "tags": card.get("tags", []),
        "cardData": card or None,
        "library_name": card.get("library_name"),
        "siblings": [sibling(path, blob, request.flag("blobs")) for path, blob in commit.files.items()],
        "usedStorage": sum(len(data) for data in repo.large_files.values()),
        "downloads": 0,
        "likes": 0,
    }
    wanted = request.query.get("expand")
    if wanted is not None:
        info = {name: info.get(name) for name in wanted}
    return Response.json({"_id": repo.id, "id": repo.id, "modelId": repo.id, **info})


def sibling(path: str, blob: Blob, blobs: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"rfilename": path}
    if blobs:
        answer |= {"blobId": blob.oid, "size": blob.size}
        if blob.lfs:
            answer["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    return answer


def tree(hub: Hub, request: Request, id: str, revision: str, folder: str = "") -> Response:
    """List a folder, or all that is below it, page by page."""
    commit = hub.open_repo(request, id).resolve(revision)
    inside = [path for path in commit.files if not folder or path.startswith(folder.rstrip("/") + "/")]
    if folder and not inside:
        raise HubError(404, f"{folder} does not exist on {revision!r}", NO_ENTRY)
    depth = folder.rstrip("/").count("/") + 1 if folder else 0
    names = {path for path in inside if request.flag("recursive") or path.count("/") == depth}
    for path in inside:
        parts = path.split("/")[:-1]
        ends = range(depth + 1, len(parts) + 1) if request.flag("recursive") else range(depth + 1, depth + 2)
        names |= {"/".join(parts[:end]) for end in ends if end <= len(parts)}
    return page(hub, request, [entry(commit, path, request.flag("expand")) for path in sorted(names)])


def paths_info(hub: Hub, request: Request, id: str, revision: str) -> Response:
    commit = hub.open_repo(request, id).resolve(revision)
    form = parse_qs(request.body.decode())
    expand = form.get("expand", [""])[0].lower() == "true"
    names = [path.rstrip("/") for path in form.get("paths", [])]
    known = [path for path in names if any(f"{file}/".startswith(f"{path}/") for file in commit.files)]
    return Response.json([entry(commit, path, expand) for path in known])


def entry(commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    """Describe a file, or a folder, which is what is not a file."""
    blob = commit.files.get(path)
    if blob is None:
        names = [(name, inner.oid) for name, inner in commit.files.items() if name.startswith(path + "/")]
        return {"type": "directory", "oid": hashlib.sha1(repr(names).encode()).hexdigest(), "size": 0, "path": path}
    answer: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.lfs:
        answer["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    if expand:
        last = commit.last_change(path)
        answer["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
    return answer


def page(hub: Hub, request: Request, items: Sequence[Any]) -> Response:
    """Return one page of a list, with the address of the next one as a link."""
    start = int(request.query.get("cursor", ["0"])[0])
    stop = start + hub.page_size
    headers = {}
    if stop < len(items):
        query = urlencode({**request.query, "cursor": [str(stop)]}, doseq=True)
        headers["Link"] = f'<{hub.endpoint}{request.path}?{query}>; rel="next"'
    return Response.json(items[start:stop], headers=headers)


def refs(hub: Hub, request: Request, id: str) -> Response:
    repo = hub.open_repo(request, id)

    def table(refs: dict[str, Commit], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": commit.id} for name, commit in refs.items()]

    answer = {"branches": table(repo.branches, "refs/heads/"), "tags": table(repo.tags, "refs/tags/"), "converts": []}
    if request.flag("include_prs"):
        answer["pullRequests"] = table(repo.pull_requests, "")
    return Response.json(answer)


def commits(hub: Hub, request: Request, id: str, revision: str) -> Response:
    history = hub.open_repo(request, id).resolve(revision).history()
    items = [
        {"id": it.id, "title": it.title, "message": it.message, "date": it.date, "authors": [{"user": it.author}]}
        for it in history
    ]
    return page(hub, request, items)


def create_tag(hub: Hub, request: Request, id: str, revision: str) -> Response:
    return add_ref(hub.open_repo(request, id, write=True), "tags", request.data["tag"], revision)


def create_branch(hub: Hub, request: Request, id: str, branch: str) -> Response:
    repo = hub.open_repo(request, id, write=True)
    return add_ref(repo, "branches", branch, request.data.get("startingPoint", MAIN))


def add_ref(repo: Repo, kind: str, name: str, revision: str) -> Response:
    table = getattr(repo, kind)
    if name in table:
        raise HubError(409, f"Reference already exists: {name}")
    table[name] = repo.resolve(revision)
    return Response.json({})


def delete_tag(hub: Hub, request: Request, id: str, tag: str) -> Response:
    return drop_ref(hub.open_repo(request, id, write=True).tags, tag)


def delete_branch(hub: Hub, request: Request, id: str, branch: str) -> Response:
    if branch == MAIN:
        raise HubError(403, "Cannot delete the default branch")
    return drop_ref(hub.open_repo(request, id, write=True).branches, branch)


def drop_ref(table: dict[str, Commit], name: str) -> Response:
    if table.pop(name, None) is None:
        raise HubError(404, f"Reference does not exist: {name}", NO_REVISION)
    return Response.json({})


def list_discussions(hub: Hub, request: Request, id: str) -> Response:
    repo = hub.open_repo(request, id)
    kind, status, author = (request.query.get(name, [None])[0] for name in ("type", "status", "author"))
    found = [
        it
        for it in reversed(repo.discussions)
        if kind in (None, "all", "pull_request" if it.pull_request else "discussion")
        and status in (None, "all", "open" if it.status in ("open", "draft") else "closed")
        and author in (None, it.author)
    ]
    start = int(request.query.get("p", ["0"])[0]) * hub.page_size
    shown = [describe(repo, it) for it in found[start : start + hub.page_size]]
    return Response.json({"discussions": shown, "count": len(found), "start": start})


def create_discussion(hub: Hub, request: Request, id: str) -> Response:
    """Open a discussion, or a pull request that has no commit of its own yet."""
    repo = hub.open_repo(request, id, log_in=True)
    wanted = request.data
    status = "draft" if wanted["pullRequest"] else ""
    discussion = open_discussion(hub, repo, wanted["title"], wanted["description"], str(hub.user(request)), status)
    if discussion.pull_request:
        repo.pull_requests[discussion.ref] = repo.head
    return Response.json({"num": discussion.num, "pullRequest": discussion.pull_request})


def get_discussion(hub: Hub, request: Request, id: str, num: str) -> Response:
    repo = hub.open_repo(request, id)
    it = find_discussion(repo, num)
    text = {"edited": False, "hidden": False, "latest": {"raw": it.description}}
    event = {"id": f"{it.num}-0", "createdAt": it.date, "author": {"name": it.author}, "type": "comment", "data": text}
    answer = {**describe(repo, it), "events": [event], "filesWithConflicts": []}
    if it.pull_request:
        answer["changes"] = {"base": f"refs/heads/{MAIN}", "mergeCommitId": it.merged_as}
    return Response.json(answer)


def merge(hub: Hub, request: Request, id: str, num: str) -> Response:
    """Merge a pull request: its files that differ from where it began win."""
    repo = hub.open_repo(request, id, write=True)
    it = find_discussion(repo, num)
    if not it.pull_request or it.merged_as is not None:
        raise HubError(409, "There is nothing to merge")
    theirs, ours = repo.pull_requests[it.ref], repo.head
    seen = {commit.id for commit in ours.history()}
    base = next(commit for commit in theirs.history() if commit.id in seen)
    kept = {path: blob for path, blob in ours.files.items() if path in theirs.files or path not in base.files}
    changed = {path: blob for path, blob in theirs.files.items() if base.files.get(path) != blob}
    title = f"{it.title} (#{it.num})"
    merged = hub.store.write(repo, ours, {**kept, **changed}, title, it.description, it.author)
    repo.branches[MAIN], it.merged_as, it.status = merged, merged.id, "merged"
    return Response.json({"mergeCommitId": merged.id})


def find_discussion(repo: Repo, num: str) -> Discussion:
    if not 0 < int(num) <= len(repo.discussions):
        raise HubError(404, f"Discussion {num} not found")
    return repo.discussions[int(num) - 1]


def describe(repo: Repo, it: Discussion) -> dict[str, Any]:
    return {
        "num": it.num,
        "title": it.title,
        "status": it.status,
        "createdAt": it.date,
        "author": {"name": it.author},
        "isPullRequest": it.pull_request,
        "repo": {"name": repo.id, "type": "model"},
    }
