"""A Hub on the loopback that speaks the real HTTP protocol, for tests through the real client.

Nothing inside huggingface_hub, transformers or datasets is replaced: their requests go to a server on 127.0.0.1 that
holds models and data sets, and can be told to fail::

    def test_push(local_hub, monkeypatch, tmp_path):
        local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)     # this process
        local_hub.add_dataset("alice/texts", {"train.jsonl": b'{"text": "one"}'})
        local_hub.fail("PUT", "/uploads/", cut_request=1000)              # the first upload breaks off
        ...
        assert [c.title for c in local_hub.commits("alice/pruned")] == ["Push", "initial commit"]

    subprocess.run([...], env=local_hub.env(tmp_path / "home", ALICE.token))  # another process

LFS objects are sent to and fetched from a second host name, ``localhost``, as the real Hub's lie on another host;
``local_hub.requests`` shows every request and whether it carried a token.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from . import client
from .jobs import Job
from .server import Seen, Server
from .store import Blobs, Commit, Repo, User
from .wire import Failure
from .writing import initial_files

ALICE = User("alice", "hf_LocalAliceWriteToken0123456789abcd")
BOB = User("bob", "hf_LocalBobReadOnlyToken0123456789abc", role="read")


class LocalHub:
    """A Hub with its users, repos, failures and log of requests; a context manager that serves while it is open."""

    def __init__(self, folder: Path):
        """Make a Hub without users and repos that keeps its files in ``folder``."""
        self.blobs = Blobs(folder)
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.renamed: dict[tuple[str, str], str] = {}
        self.grants: set[tuple[str, str]] = set()
        self.requests: list[Seen] = []
        self.failures: list[Failure] = []
        self.jobs: list[Job] = []
        self.xorbs: dict[str, list[bytes]] = {}
        self.store_url: str | None = None
        self.store_tokens: dict[str, str] = {}
        self.jobs_end = "COMPLETED"
        self.page_size = 1000
        self.lock = threading.RLock()
        self.server = Server(self)
        port = self.server.server_address[1]
        self.url, self.storage_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> LocalHub:
        self.server.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stop()

    def add_user(self, name: str, token: str, role: str = "write", orgs: tuple[str, ...] = ()) -> User:
        """Add a user who writes to their own namespace and those of ``orgs``; the role "read" writes nowhere."""
        user = self.users[token] = User(name, token, role, orgs)
        return user

    def add_model(self, repo_id: str, files: Path | Mapping[str, bytes], *, private=False, gated=False) -> Commit:
        """Add a model, or a commit to an existing one, from a folder or a mapping of path to content."""
        return self._add("model", repo_id, files, private, gated)

    def add_dataset(self, repo_id: str, files: Path | Mapping[str, bytes], *, private=False, gated=False) -> Commit:
        """Add a data set, or a commit to an existing one, from a folder or a mapping of path to content."""
        return self._add("dataset", repo_id, files, private, gated)

    def _add(self, repo_type: str, repo_id: str, files: Path | Mapping[str, bytes], private: bool, gated: bool):
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p for p in sorted(files.rglob("*")) if p.is_file()}
        owner = repo_id.split("/")[0]
        with self.lock:
            repo = self.repos.get((repo_type, repo_id)) or self.new_repo(repo_type, repo_id, owner)
            repo.private, repo.gated = private, gated
            head = repo.find("main")
            added = {path: self.blobs.add(path, content) for path, content in files.items()}
            made = repo.add_commit(head, {**head.files, **added}, owner, "Add files")
            repo.branches["main"] = made.id
        return made

    def new_repo(self, repo_type: str, repo_id: str, author: str, private: bool = False) -> Repo:
        """Add a repo that holds what a new one holds on the Hub: one commit with a ``.gitattributes``."""
        repo = self.repos[repo_type, repo_id] = Repo(repo_type, repo_id, private)
        repo.branches["main"] = repo.add_commit(None, initial_files(self), author, "initial commit").id
        return repo

    def rename(self, old_id: str, new_id: str, repo_type: str = "model") -> None:
        """Answer requests for ``old_id`` with a redirect to ``new_id``, as after a repo was moved."""
        self.renamed[repo_type, old_id] = new_id

    def grant(self, user: str, repo_id: str) -> None:
        """Let a user into a gated repo."""
        self.grants.add((user, repo_id))

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Return path and content of every file that a reader sees."""
        commit = self.repos[repo_type, repo_id].find(revision)
        return {path: self.blobs.read(entry) for path, entry in commit.files.items()}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Return the commits of a branch, newest first; the last one is the Hub's own "initial commit"."""
        repo = self.repos[repo_type, repo_id]
        return repo.history(repo.find(revision))

    def fail(
        self,
        method: str,
        path: str,
        status: int | None = None,
        *,
        times: int | None = 1,
        skip: int = 0,
        code: str | None = None,
        message: str | None = None,
        body: bytes | None = None,
        retry_after: int | None = None,
        cut_request: int | None = None,
        cut_answer: int | None = None,
        delay: float = 0.0,
        meanwhile: Callable[[], object] | None = None,
    ) -> Failure:
        """Let the next matching requests fail.

        Args:
            method: Regular expression that the whole method must match, ".*" for any.
            path: Regular expression to search for in the path (quoted as it was sent, without the query).
            status: Answer with this status, and do nothing.
            times: How many requests fail; None for all from now on.
            skip: How many matching requests pass before the first failure.
            code: ``X-Error-Code`` of the answer: RepoNotFound, EntryNotFound, RevisionNotFound, GatedRepo; when None,
                RepoNotFound for 401 and 404 on a repo's addresses and nothing elsewhere.
            message: The error's text; a usual one for the status when None.
            body: Answer with this, as a proxy does with a page of its own, and do nothing; the status is 200 if None.
            retry_after: Seconds, as ``Retry-After`` of the answer.
            cut_request: Drop the connection after this many bytes of the request's content, and do nothing.
            cut_answer: Do what was asked, and drop the connection after this many bytes of the answer's content
                (0: before its headers).
            delay: Seconds to wait before anything else happens.
            meanwhile: What somebody else does before the request is looked at.

        Returns:
            The failure; its ``hits`` says how often it struck, and ``times = 0`` ends it.
        """
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        others = {"delay": delay, "meanwhile": meanwhile, "cut_request": cut_request, "cut_answer": cut_answer}
        known = {"status": status, "message": message, "body": body, "code": code, "headers": headers}
        failure = Failure(method, re.compile(path), times, skip, **known, **others)
        self.failures.append(failure)
        return failure

    def failure_for(self, method: str, path: str) -> Failure | None:
        """Return the failure that strikes a request; the server asks once for each."""
        with self.lock:
            return next((failure for failure in self.failures if failure.strikes(method, path)), None)

    def web_url(self, repo_type: str, repo_id: str) -> str:
        """Return the address of a repo's page."""
        return f"{self.url}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"

    def env(self, home: Path, token: str | None = None, xet: bool = False) -> dict[str, str]:
        """Return the environment for another process that shall talk to this Hub; see :func:`client.environment`."""
        return client.environment(self.url, home, token, xet)

    def attach(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None, xet: bool = False) -> None:
        """Let the client in this process talk to this Hub until the test ends; see :func:`client.attach`."""
        client.attach(self.url, monkeypatch, home, token, xet)


@pytest.fixture
def local_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A running Hub without repos that knows ``ALICE``, who writes, and ``BOB``, who only reads."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        for user in (ALICE, BOB):
            hub.add_user(user.name, user.token, user.role)
        yield hub
