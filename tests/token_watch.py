"""After every test: no token of the local Hub in what was printed, logged, raised or written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import ALICE, BOB

TOKENS = (ALICE.token, BOB.token)


def holds_token(text: str) -> bool:
    """Whether a token stands in a text."""
    return any(token in text for token in TOKENS)


def files_with_tokens(folder: Path) -> list[Path]:
    """Files below a folder that hold a token, whatever they are."""
    wanted = [token.encode() for token in TOKENS]
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [path] if any(token in content for token in wanted) else []
    return found


class WatchedCapture:
    """`capsys`, which refuses to hand out a text with a token."""

    def __init__(self, inner: pytest.CaptureFixture) -> None:
        self._inner = inner

    def readouterr(self):
        """What was printed since the last call."""
        found = self._inner.readouterr()
        assert not holds_token(found.out + found.err), "a token was printed"
        return found

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


@pytest.fixture
def capsys(capsys) -> WatchedCapture:
    """pytest's own, watched."""
    return WatchedCapture(capsys)


@pytest.fixture(autouse=True)
def no_token_in_files(request) -> Iterator[None]:
    """Search the test's folder when it has ended."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None:
        found = files_with_tokens(folder)
        assert not found, f"a token was written to {found}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Search output, logs and exceptions of each test."""
    report = yield
    shown = "".join(text for _, text in report.sections) + report.longreprtext
    if call.excinfo is not None:
        shown += str(call.excinfo.value)
    if holds_token(shown) and report.outcome == "passed":
        report.outcome, report.longrepr = "failed", "a token was printed or logged"
    return report
