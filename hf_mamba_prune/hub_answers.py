"""What the Hub answers, or fails to, as one sentence each; and for how long the command waits for it."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers
from huggingface_hub.utils._xet import abort_xet_session

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, NameError)
"""What the client raises when an answer is not JSON, or JSON of another shape: it looks into it without a check."""

ODD_ANSWER = (
    "is not what the Hub sends, but another page or another shape: look for a proxy or a login page between here and "
    "the Hub, or check HF_ENDPOINT"
)

LONGEST_PAUSE = 8
"""Seconds; the client waits as long as a `Retry-After` says, and does so five times."""

_SECONDS = {
    "connect": (10.0, 6.0, 4.0, 3.0, 2.0, 2.0),
    "read": (20.0, 6.0, 3.0, 2.0, 1.0, 1.0),
    "write": (20.0, 5.0, 3.0, 2.0, 1.0, 1.0),
}
"""For which a request that nothing answers is waited for, the first time and when it is asked again: with the client's
pauses of 23 seconds between its six tries less than a minute."""

_COMMIT_SECONDS = 50.0
"""A commit of many files is answered late, and is not asked for twice."""

_STORE = {"RETRY_MAX_ATTEMPTS": "3", "RETRY_BASE_DELAY": "1s", "RETRY_MAX_DURATION": "20s", "CONNECT_TIMEOUT": "10s"}
"""hf_xet's own settings let a store that answers 429 or not at all take minutes for each request."""


_SILENCE, _SLOWEST = 40.0, 1 << 17
"""Seconds that hf_xet is given, and bytes that it must send in each second after those."""


def bound_waiting() -> None:
    """Let no request of this process wait for long; for a command, since the client and its settings are shared.

    What the user has set of hf_xet's settings stays. A file is sent for as long as it takes.
    """
    for name, value in _STORE.items():
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)
    patience = _Patience()
    found = get_session().event_hooks
    others = {kind: [hook for hook in hooks if not isinstance(hook, _Hook)] for kind, hooks in found.items()}
    hooks: dict[str, list[Callable[..., object]]] = {
        "request": [*others["request"], _Hook(call=patience.bound)],
        "response": [*others["response"], _Hook(call=patience.answered)],
    }

    def make() -> httpx2.Client:
        return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None)

    set_client_factory(make)


@dataclass(frozen=True, kw_only=True)
class _Hook:
    """One of ours, told from others so that it is not added twice."""

    call: Callable[..., object]

    def __call__(self, found: object) -> object:
        return self.call(found)


class _Patience:
    """How long the requests of a client are waited for, and which answers are not."""

    def __init__(self) -> None:
        self._asked: Counter[tuple[str, str]] = Counter()
        self._stateless = 0

    def bound(self, request: httpx2.Request) -> None:
        """Limit a request that is about to be sent; the less, the more often it went without an answer."""
        limits = request.extensions.setdefault("timeout", {})
        key = _key(request)
        tries = self._asked[key]
        self._asked[key] += 1
        for kind, seconds in _SECONDS.items():
            if limits.get(kind) is None:
                own = seconds[min(tries, len(seconds) - 1)]
                limits[kind] = _COMMIT_SECONDS if kind == "read" and "/commit/" in request.url.path else own

    def answered(self, response: httpx2.Response) -> None:
        """Refuse what would be waited for without end."""
        self._asked.pop(_key(response.request), None)
        if (pause(response) or 0) > LONGEST_PAUSE:
            response.read()
            hf_raise_for_status(response)
        if response.status_code == 200 and _JOB.fullmatch(response.request.url.path):
            self._stateless = 0 if _has_state(response) else self._stateless + 1
            if self._stateless >= _STATELESS:
                raise ValueError("a job without a state")  # for the client it is one that goes on


@contextmanager
def bounded_store(files: Iterable[Path]) -> Iterator[None]:
    """End hf_xet's work after a time that grows with what is sent: it has no limit for a store that takes it in
    silence.

    Args:
        files: that are sent.
    """
    limit = _SILENCE + sum(path.stat().st_size for path in files) / _SLOWEST
    done = threading.Event()

    def watch() -> None:
        left = not done.wait(limit)
        while left:  # again, as it may not have begun
            abort_xet_session()
            left = not done.wait(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _key(request: httpx2.Request) -> tuple[str, str]:
    return request.method, str(request.url.copy_with(query=None))


_JOB = re.compile(r".*/api/jobs/[^/]+/[^/]+")
_STATELESS = 3
"""Answers about a job without its state, one after the other, that are still borne."""


def _has_state(response: httpx2.Response) -> bool:
    response.read()
    try:
        found = response.json()
    except ValueError:
        return False
    status = found.get("status") if isinstance(found, dict) else None
    return isinstance(status, dict) and isinstance(status.get("stage"), str)


def pause(response: httpx2.Response) -> int | None:
    """Seconds after which the Hub wants to be asked again, None where it says nothing."""
    if response.status_code not in (429, 503):
        return None
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    seconds = response.headers.get("Retry-After", "")
    return int(seconds) if seconds.isdecimal() else None


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """What goes wrong with the Hub as one sentence each, without addresses that could hold a secret.

    Inside it stands nothing but calls of the client and the reading of what they return.

    Args:
        what: the repository, or what is asked for.

    Raises:
        ValueError: not a valid id.
        RuntimeError: all else.
    """
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{what!r} is not a valid Hub id: expected user/name.") from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, *UNREADABLE) as error:
        sentence = _sentence(what, error)
        if sentence is None:
            raise
        raise RuntimeError(sentence) from error


def _sentence(what: str, error: BaseException) -> str | None:
    """None for what is no fault of the Hub: a file here that cannot be read."""
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN."
    if isinstance(error, OfflineModeIsEnabled):
        return f"{what} needs the Hub, and HF_HUB_OFFLINE forbids it: unset that."
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no {what}, or your token may not see it: check `hf auth whoami`."
    if isinstance(error, HfHubHTTPError):
        return _refusal(what, error)
    if isinstance(error, httpx2.HTTPError):
        return f"the connection to the Hub broke over {what} ({type(error).__name__}): try again."
    if isinstance(error, OSError):  # hf_xet's carry a text alone, the system's a number
        return _store_failure(what, str(error)) if error.errno is None else None
    cause = error.__cause__
    if isinstance(error, ValueError) and isinstance(cause, HfHubHTTPError):
        return f"the Hub does not take the front matter of README.md: {' '.join(str(error).split())}."
    if isinstance(error, RuntimeError):
        return _store_failure(what, str(error)) if cause is None else _sentence(what, cause)
    return f"the Hub's answer about {what} {ODD_ANSWER}."


_REASONS = {
    401: "your token is missing or not valid: log in with `hf auth login`",
    403: "your token may not write there: use one with the role `write`, or another --repo-id",
    404: "there is no such repository or branch",
    409: "somebody else changed the repository meanwhile",
    412: "somebody else changed the repository meanwhile",
    429: "too many requests: wait a few minutes",
}


def _reason(status: int) -> str:
    return _REASONS.get(status, "the Hub has trouble: try again later" if status >= 500 else "it does not say why")


def _refusal(what: str, error: HfHubHTTPError) -> str:
    if error.response is None:
        return f"the Hub refuses {what}."
    status, seconds = error.response.status_code, pause(error.response)
    reason = f"too many requests: wait {seconds} seconds" if seconds and status == 429 else _reason(status)
    return f"the Hub refuses {what} (HTTP {status}): {reason}."


def _store_failure(what: str, message: str) -> str:
    """hf_xet says in text alone what happened, with addresses."""
    found = re.search(r"\((\d{3}) [A-Z]", message)
    if found and "xet-write-token" in message:
        return f"the Hub refuses {what} (HTTP {found[1]}): {_reason(int(found[1]))}."
    how = f"HTTP {found[1]}" if found else "it cannot be reached, or breaks off"
    how = "it does not answer" if message.startswith("Operation cancelled") else how
    how = "its answer cannot be read" if message.startswith(("Internal error", "I/O error")) else how
    return (
        f"the Hub's content store did not take the files of {what} ({how}): try again later, or go around it with "
        "HF_HUB_DISABLE_XET=1 in the environment."
    )
