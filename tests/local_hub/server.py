"""HTTP over the loopback: sockets, routes and the log of requests."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.client import responses
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from . import jobs, reading, writing, xet
from .access import authenticate
from .wire import Answer, Body, ConnectionCut, Failure, HubError, Request

if TYPE_CHECKING:
    from . import LocalHub

# One segment or two: the oldest repos of the Hub have no namespace. The shorter reading is tried first.
REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
WEB = rf"/(?P<kind>datasets/)?{REPO}"
REV = r"(?P<rev>[^/]+)"
OID = r"(?P<oid>[0-9a-f]{64})"
Action = Callable[["LocalHub", Request], Answer]
ROUTES: tuple[tuple[str, str, Action], ...] = (
    ("GET", r"/api/whoami-v2", reading.whoami),
    ("POST", r"/api/repos/create", writing.create_repo),
    ("DELETE", r"/api/repos/delete", writing.delete_repo),
    ("POST", r"/api/validate-yaml", writing.validate_yaml),
    ("GET", rf"{API}/tree/{REV}(?:/(?P<path>.+))?", reading.tree),
    ("POST", rf"{API}/paths-info/{REV}", reading.paths_info),
    ("GET", rf"{API}/refs", reading.refs),
    ("GET", rf"{API}/commits/{REV}", reading.commits),
    ("GET", rf"{API}/auth-check", reading.auth_check),
    ("POST", rf"{API}/preupload/{REV}", writing.preupload),
    ("POST", rf"{API}/commit/{REV}", writing.commit),
    ("POST", rf"{API}/branch/{REV}", writing.create_branch),
    ("POST", rf"{API}/tag/{REV}", writing.create_tag),
    ("GET", rf"{API}/discussions", writing.discussions),
    ("POST", rf"{API}/discussions", writing.create_discussion),
    ("GET", rf"{API}/discussions/(?P<number>\d+)", writing.discussion),
    ("GET", rf"{API}(?:/revision/{REV})?", reading.repo_info),
    ("POST", rf"{WEB}\.git/info/lfs/objects/batch", writing.lfs_batch),
    ("POST", rf"{WEB}\.git/info/lfs/verify", writing.lfs_verify),
    ("PUT", rf"/uploads/{OID}", writing.lfs_upload),
    ("GET", rf"{API}/xet-write-token/{REV}", xet.write_token),
    ("GET", r"/cas/v1/chunks/(?P<prefix>[^/]+)/(?P<hash>[^/]+)", xet.known_chunk),
    ("POST", r"/cas/v1/xorbs/(?P<prefix>[^/]+)/(?P<hash>[^/]+)", xet.upload_xorb),
    ("POST", r"/cas/v1/shards", xet.upload_shard),
    ("GET", r"/api/jobs/hardware", jobs.hardware),
    ("POST", r"/api/jobs/(?P<owner>[^/]+)", jobs.start),
    ("GET", r"/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)", jobs.inspect),
    ("GET", r"/api/jobs/(?P<owner>[^/]+)/(?P<job>[^/]+)/logs", jobs.logs),
    ("HEAD|GET", rf"/objects/{OID}", reading.stored_object),
    ("HEAD|GET", rf"{WEB}/resolve/{REV}/(?P<path>.+)", reading.resolve),
)
COMPILED = tuple((methods.split("|"), re.compile(path), action) for methods, path, action in ROUTES)


@dataclass(frozen=True)
class Seen:
    """A request that came. ``status`` is None when the connection was cut; the token itself is never kept."""

    method: str
    path: str
    host: str
    user: str | None
    with_token: bool
    status: int | None


class Server(ThreadingMixIn, TCPServer):
    """One thread for each connection; all of them are closed and joined when it stops.

    Not the server of ``http.server``: that one asks the network's name service for a name of 127.0.0.1.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: LocalHub):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.stopping = threading.Event()
        self.open: dict[socket.socket, threading.Thread] = {}
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="local-hub", daemon=True)

    def handle_error(self, request, client_address) -> None:
        """Say what went wrong here, and nothing of a client that left without its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Close the port and every connection, and wait for the threads."""
        self.stopping.set()
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
        self.server_close()
        for connection, thread in list(self.open.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(5)


class Handler(BaseHTTPRequestHandler):
    """Reads requests from one connection, until it ends or is cut."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        """Serve the connection."""
        self.server.open[self.connection] = threading.current_thread()
        try:
            super().handle()
        except (ConnectionError, ConnectionCut):
            # A linger time of zero makes the close a reset: what the client sees when a connection breaks.
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        finally:
            self.server.open.pop(self.connection, None)

    def finish(self) -> None:
        """Close the connection's files; a client that went away does not matter any more."""
        with contextlib.suppress(OSError):
            super().finish()

    def serve(self) -> None:
        """Answer one request, or fail as ordered."""
        hub, url = self.server.hub, urlsplit(self.path)
        failure = hub.failure_for(self.command, url.path)
        body = Body(self.rfile, self.headers, failure.cut_request if failure else None)
        request = Request(self.command, url.path, url.query, self.headers, body)
        status = None
        try:
            if failure and failure.delay:
                self.server.stopping.wait(failure.delay)
            if failure and failure.meanwhile:
                failure.meanwhile()
            if failure and failure.cut_request is not None:
                body.read()
            answer = (failure.answer(url.path) if failure else None) or self.run(request)
            answer = answer.answer() if isinstance(answer, HubError) else answer
            body.read()
            status = answer.status if not failure or failure.cut_answer is None else None
        finally:
            self.log(request, status)
        self.send(answer, failure)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def run(self, request: Request) -> Answer:
        """Find the action of a request and return its answer."""
        hub = self.server.hub
        try:
            request.user = authenticate(hub, self.headers.get("Authorization"))
            for methods, pattern, action in COMPILED:
                match = pattern.fullmatch(request.path) if request.method in methods else None
                if match:
                    request.params = {name: unquote(part) for name, part in match.groupdict().items() if part}
                    return action(hub, request)
            raise HubError(404, f"The local Hub has no {request.method} {request.path}")
        except HubError as error:
            return error.answer()

    def log(self, request: Request, status: int | None) -> None:
        """Add the request to the hub's list."""
        user, host = request.user.name if request.user else None, self.headers.get("Host", "").split(":")[0]
        with_token = "Authorization" in self.headers
        self.server.hub.requests.append(Seen(request.method, request.path, host, user, with_token, status))

    def send(self, answer: Answer, failure: Failure | None) -> None:
        """Send an answer, or the beginning of it."""
        head = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, '')}"]
        head += [f"{name}: {value}" for name, value in {**answer.headers, "Content-Length": answer.size}.items()]
        left = failure.cut_answer if failure and failure.cut_answer is not None else None
        if left == 0:
            raise ConnectionCut
        self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1", "replace"))
        for piece in answer.pieces() if self.command != "HEAD" else ():
            self.wfile.write(piece if left is None else piece[:left])
            left = None if left is None else left - len(piece)
            if left is not None and left <= 0:
                # A plain close, not a reset: the client keeps what came before the cut.
                self.close_connection = True
                return
