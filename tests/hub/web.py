"""HTTP for the loopback Hub: requests with a log, answers, and a server that can be unplugged."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub.faults import ConnectionDies

PIECE = 64 * 1024


@dataclass
class Request:
    """One request, and what became of it: this is the entry of the log.

    Attributes:
        origin: ``"hub"``, ``"storage"``, or ``"elsewhere"`` if another host was meant and this one taken for a proxy.
        path: as it was sent, without the query; for another host, the whole address.
        received: bytes of the body that have arrived.
        sent: bytes of the answer's body that have been sent.
        status: of the answer; 0 if the connection died without one.
    """

    origin: str
    method: str
    path: str
    query: Mapping[str, list[str]] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    received: int = 0
    sent: int = 0
    status: int = 0

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


@dataclass
class Response:
    """An answer; ``dies_after`` bytes of its body the connection is closed."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    dies_after: int | None = None

    @staticmethod
    def json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        return Response(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})


Answer = Callable[[Request], Response]
# Called with each piece of a body that arrives, before the next one is read.
Watch = Callable[[Request], None]


class Handler(BaseHTTPRequestHandler):
    """One connection, which carries one request: nothing is left open when a test ends."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Listener

    def handle_request(self) -> None:
        self.close_connection = True
        request = self.parse()
        self.server.log.append(request)
        try:
            self.read_body(request)
            response = self.server.answer(request)
            request.body = b""
            self.send(request, response)
        except ConnectionDies:
            self.connection.shutdown(socket.SHUT_WR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = handle_request

    def parse(self) -> Request:
        headers = {name.title(): value for name, value in self.headers.items()}
        if not self.path.startswith("/"):
            return Request("elsewhere", self.command, self.path, {}, headers)
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        return Request(self.server.origin, self.command, url.path, query, headers)

    def read_body(self, request: Request) -> None:
        pieces = []
        for size in self.piece_sizes():
            pieces.append(self.rfile.read(size))
            request.received += len(pieces[-1])
            self.server.watch(request)
        request.body = b"".join(pieces)

    def piece_sizes(self) -> Any:
        """Yield how many bytes of the body to read next, so that no piece is long."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield from pieces_of(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from pieces_of(int(self.headers.get("Content-Length", 0)))

    def send(self, request: Request, response: Response) -> None:
        request.status = response.status
        self.send_response(response.status)
        headers = {"Content-Length": str(len(response.body)), **response.headers, "Connection": "close"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        body = memoryview(response.body)[: response.dies_after]
        begin = time.perf_counter()
        for start in range(0, len(body), PIECE):
            piece = body[start : start + PIECE]
            time.sleep(max(0.0, begin + start / self.server.rate - time.perf_counter()))
            # Counted first: whoever has read a piece finds it in the log.
            request.sent += len(piece)
            self.wfile.write(piece)
        if response.dies_after is not None:
            raise ConnectionDies

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log of requests is a list."""


def pieces_of(size: int) -> list[int]:
    return [PIECE] * (size // PIECE) + ([size % PIECE] if size % PIECE else [])


def bound_socket(port: int = 0) -> socket.socket:
    """Return a socket that has a port on 127.0.0.1 and refuses connections until it listens."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


class Listener(ThreadingHTTPServer):
    """One origin on 127.0.0.1, in threads of its own, on a socket from ``bound_socket``."""

    # So that closing the server waits for the requests that it is answering.
    daemon_threads = False

    def __init__(
        self, origin: str, log: list[Request], answer: Answer, watch: Watch, bound: socket.socket, rate: float
    ) -> None:
        self.rate = rate
        self.origin, self.log, self.answer, self.watch = origin, log, answer, watch
        super().__init__(bound.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), name=f"{origin} of the loopback Hub")
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over clients that have gone; errors of our own must not be silent."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)
