"""A Hugging Face Hub on 127.0.0.1 for tests: two origins, spoken to by the unmodified client.

It keeps models only, in memory. ``Hub.store`` is what it keeps, ``Hub.faults`` makes it fail, and ``Hub.requests`` is
all that it was asked, in order.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode

from tests.hub import api, files
from tests.hub.faults import Faults
from tests.hub.store import HubError, Repo, Store
from tests.hub.web import Listener, Request, Response, bound_socket

ID = r"([^/]+/[^/]+)"
ONE = r"([^/]+)"
MODEL = f"/api/models/{ID}"
Action = Callable[..., Response]

ROUTES: tuple[tuple[str, str, Action], ...] = (
    ("GET", "/api/whoami-v2", api.whoami),
    ("POST", "/api/validate-yaml", api.validate_yaml),
    ("POST", "/api/repos/create", api.create_repo),
    ("DELETE", "/api/repos/delete", api.delete_repo),
    ("POST", "/api/repos/move", api.move_repo),
    ("PUT", f"{MODEL}/settings", api.change_settings),
    ("GET", f"{MODEL}/auth-check", api.auth_check),
    ("GET", MODEL, api.model_info),
    ("GET", f"{MODEL}/revision/{ONE}", api.model_info),
    ("GET", f"{MODEL}/tree/{ONE}(?:/(.+))?", api.tree),
    ("POST", f"{MODEL}/paths-info/{ONE}", api.paths_info),
    ("GET", f"{MODEL}/refs", api.refs),
    ("GET", f"{MODEL}/commits/{ONE}", api.commits),
    ("POST", f"{MODEL}/tag/{ONE}", api.create_tag),
    ("DELETE", f"{MODEL}/tag/{ONE}", api.delete_tag),
    ("POST", f"{MODEL}/branch/{ONE}", api.create_branch),
    ("DELETE", f"{MODEL}/branch/{ONE}", api.delete_branch),
    ("GET", f"{MODEL}/discussions", api.list_discussions),
    ("POST", f"{MODEL}/discussions", api.create_discussion),
    ("GET", f"{MODEL}/discussions/{ONE}", api.get_discussion),
    ("POST", f"{MODEL}/discussions/{ONE}/merge", api.merge),
    ("POST", f"{MODEL}/preupload/{ONE}", files.preupload),
    ("POST", f"{MODEL}/commit/{ONE}", files.commit),
    ("POST", f"/{ID}\\.git/info/lfs/objects/batch", files.lfs_batch),
    ("POST", f"/{ID}\\.git/info/lfs/objects/verify", files.lfs_verify),
    ("GET|HEAD", f"/{ID}/resolve/{ONE}/(.+)", files.resolve),
)


@dataclass(frozen=True)
class User:
    """Whom a token stands for; one with the role ``"read"`` may change nothing."""

    name: str
    role: str = "write"


class Hub:
    """A running Hub.

    Attributes:
        endpoint: address of the Hub itself.
        users: by token. The owner of a repository is the part of its name before the slash.
        page_size: how many entries a page of a list has.
        rate: bytes of an answer that are sent per second at most, as by a real network.
    """

    def __init__(self, users: dict[str, User], rate: float = math.inf) -> None:
        self.rate = rate
        self.users = users
        self.store, self.faults = Store(), Faults()
        self.requests: list[Request] = []
        self.page_size = 1000
        self._lock = threading.Lock()
        self._sockets = {"hub": bound_socket(), "storage": bound_socket()}
        self.endpoint, self.storage_endpoint = (
            f"http://127.0.0.1:{bound.getsockname()[1]}" for bound in self._sockets.values()
        )
        self._listeners: list[Listener] = []
        self.plug_in()

    def plug_in(self) -> None:
        """Start to answer, or answer again under the same addresses."""
        self._listeners = [
            Listener(origin, self.requests, self._answer, self._watch, bound, self.rate)
            for origin, bound in self._sockets.items()
        ]

    def unplug(self) -> None:
        """Refuse every connection from now on, as if there were no network; the ports stay reserved."""
        for listener in self._listeners:
            listener.stop()
            self._sockets[listener.origin] = bound_socket(listener.server_address[1])
        self._listeners.clear()

    def close(self) -> None:
        self.unplug()
        for bound in self._sockets.values():
            bound.close()

    def asked(self, line: str, origin: str = ".*") -> list[Request]:
        """Return the requests so far whose line (``GET /api/models/...``) contains a pattern."""
        return [it for it in self.requests if re.search(line, it.line) and re.fullmatch(origin, it.origin)]

    def uploads(self) -> list[Request]:
        """Return the requests that sent a large file's content."""
        return self.asked("^PUT ", "storage")

    def user(self, request: Request) -> str | None:
        """Return who asks, or None for somebody not logged in."""
        if request.token is None:
            return None
        if request.token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[request.token].name

    def writer(self, request: Request) -> str:
        """Return who asks, who has to be allowed to write."""
        user = self.user(request)
        if user is None or request.token is None:
            raise HubError(401, "Invalid username or password.")
        if self.users[request.token].role != "write":
            raise HubError(403, "This token may not write: its role is 'read'")
        return user

    def open_repo(self, request: Request, id: str, write: bool = False, log_in: bool = False) -> Repo:
        """Return a repository to somebody who may see it, and who may change it or is logged in if need be.

        One that is private looks as if it did not exist.
        """
        user = self.user(request)
        repo = self.store.repos.get(id)
        if id in self.store.moved:
            address = self.endpoint + request.path.replace(id, self.store.moved[id], 1)
            raise HubError(307, "Moved", headers={"Location": f"{address}?{urlencode(request.query, doseq=True)}"})
        if repo is None or not repo.may_read(user):
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if (write or log_in) and self.writer(request) != repo.owner and write:
            raise HubError(403, f"You don't have the rights to write to {id}")
        return repo

    def signature(self, path: str) -> str:
        return hashlib.sha256(f"signed {path}".encode()).hexdigest()[:16]

    def sign(self, path: str) -> str:
        """Return an address on the other origin that needs no token."""
        return f"{self.storage_endpoint}{path}?signature={self.signature(path)}"

    def _watch(self, request: Request) -> None:
        """Break off an upload to storage when enough of it has arrived."""
        if request.origin == "storage":
            self.faults.strike_upload(request.path, request.received)

    def _answer(self, request: Request) -> Response:
        try:
            if (fault := self.faults.find("answer", request.line)) is not None:
                raise HubError(fault.status, "The loopback Hub was told to fail")
            with self._lock:
                return files.storage(self, request) if request.origin == "storage" else self._route(request)
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            return Response.json({"error": error.message}, error.status, headers)

    def _route(self, request: Request) -> Response:
        if request.origin == "elsewhere":
            raise HubError(403, f"Tests may not reach {request.path}")
        for methods, pattern, action in ROUTES:
            found = re.fullmatch(pattern, request.path)
            if found is not None and re.fullmatch(methods, request.method):
                groups: list[Any] = [unquote(group) for group in found.groups() if group is not None]
                return action(self, request, *groups)
        raise HubError(404, f"The loopback Hub has no {request.line}")
