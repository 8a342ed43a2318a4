"""Requests, answers and errors as the local Hub's actions see them, and failures made to order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs

from .store import CHUNK, User

MESSAGES = {
    401: "Invalid username or password.",
    403: "Forbidden: pass a token with the right permissions.",
    404: "Not found.",
    409: "Conflict with another operation.",
    412: "A commit has happened since. Please refresh and try again.",
    429: "Too many requests.",
    500: "Internal error.",
}
REPO_PATH = re.compile(r"/api/(models|datasets)/.+|/.+/resolve/.+")


def default_code(status: int, path: str) -> str | None:
    """Return the error code that makes the client raise here what it raises for the real Hub.

    The real Hub sends none with a 401, and the client takes any 401 on a repo's address for a missing repo; but it
    knows such an address by its "https", which a local Hub does not have.
    """
    return "RepoNotFound" if status in (401, 404) and REPO_PATH.fullmatch(path) else None


class HubError(Exception):
    """An answer other than success, with the headers from which the client makes its exception classes."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(self) -> Answer:
        """Return what is sent to the client."""
        headers = {"X-Error-Message": str(self), **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Answer.json({"error": str(self)}, self.status, headers)


class ConnectionCut(Exception):
    """The connection is to be dropped here, without an answer."""


@dataclass
class Failure:
    """A failure made to order; see :meth:`LocalHub.fail`. ``hits`` counts how often it struck."""

    method: str
    path: re.Pattern[str]
    times: int | None
    skip: int
    status: int | None = None
    message: str | None = None
    code: str | None = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_request: int | None = None
    cut_answer: int | None = None
    delay: float = 0.0
    meanwhile: Callable[[], object] | None = None
    hits: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Tell whether this request fails, and count it."""
        if not re.fullmatch(self.method, method) or not self.path.search(path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True

    def answer(self, path: str) -> Answer | HubError | None:
        """Return what to send in place of the true answer, if there is something."""
        if self.body is not None:
            return Answer(self.status or 200, {"Content-Type": "text/html", **self.headers}, self.body)
        if self.status is None:
            return None
        message = self.message or MESSAGES.get(self.status, f"Failure {self.status}.")
        error = HubError(self.status, message, self.code or default_code(self.status, path))
        error.headers.update(self.headers)
        return error


class Body:
    """A request's content, read from the socket piece by piece and never further than it goes."""

    def __init__(self, file: BinaryIO, headers: Mapping[str, str], cut_after: int | None = None):
        self._pieces = self._chunked(file) if "chunked" in headers.get("Transfer-Encoding", "") else None
        self._file, self._left = file, int(headers.get("Content-Length") or 0)
        self._cut_after = cut_after

    def pieces(self) -> Iterator[bytes]:
        """Yield the content.

        Raises:
            ConnectionCut: the client went away, or a failure asks for a cut here.
        """
        seen = 0
        for piece in self._pieces or self._sized():
            seen += len(piece)
            if self._cut_after is not None and seen >= self._cut_after:
                raise ConnectionCut
            yield piece
        if self._cut_after is not None:
            raise ConnectionCut

    def read(self) -> bytes:
        """Return all that is left of the content."""
        return b"".join(self.pieces())

    def _sized(self) -> Iterator[bytes]:
        step = CHUNK if self._cut_after is None else 1 + self._cut_after // 2
        while self._left > 0:
            piece = self._file.read(min(self._left, step))
            if not piece:
                raise ConnectionCut
            self._left -= len(piece)
            yield piece

    @staticmethod
    def _chunked(file: BinaryIO) -> Iterator[bytes]:
        while size := int(file.readline().split(b";")[0] or b"0", 16):
            yield file.read(size)
            file.readline()
        file.readline()


@dataclass
class Request:
    """What a client asks. ``params`` are the unquoted parts of the path that the route names."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Body
    user: User | None = None
    params: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """Return the content parsed as JSON."""
        return json.loads(self.body.read() or b"null")

    def flag(self, name: str) -> bool:
        """Tell whether a query parameter is set to something true."""
        return self.option(name).lower() in ("1", "true")

    def option(self, name: str) -> str:
        """Return the value of a query parameter, or an empty string."""
        return parse_qs(self.query).get(name, [""])[-1]


@dataclass
class Answer:
    """What goes back: ``body`` is bytes, or a file on disk of which ``span`` (first, last + 1) is sent."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    span: tuple[int, int] | None = None

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """Make an answer that carries JSON."""
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    @classmethod
    def file(cls, path: Path, wanted: str | None, headers: Mapping[str, str]) -> Answer:
        """Make an answer that carries a file, or the range of it that a ``Range`` header asks for."""
        size = path.stat().st_size
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
        if match is None or match.groups() == ("", ""):
            return cls(200, headers, path, (0, size))
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            raise HubError(416, "Range not satisfiable.", Content_Range=f"bytes */{size}")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return cls(206, headers, path, (start, end))

    @property
    def size(self) -> int:
        """Number of bytes of the body."""
        return self.span[1] - self.span[0] if self.span else len(self.body)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body."""
        if isinstance(self.body, bytes):
            yield self.body
            return
        start, end = self.span
        with self.body.open("rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(CHUNK, end - start))):
                start += len(piece)
                yield piece
