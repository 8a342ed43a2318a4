"""What the local Hub holds: users, repos, commits and the bytes of their files.

A commit maps every path to an :class:`Entry`; the bytes lie in one folder, named by their SHA-256, so two commits
share what they have in common. A commit is built completely before a branch points to it: a reader sees the old
state or the new one, never something in between.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

LFS_SIZE = 10_000_000
LFS_SUFFIXES = (".bin", ".safetensors", ".parquet", ".gz", ".xz", ".zst", ".zip", ".pt", ".npz", ".png")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
CHUNK = 1 << 20


@dataclass(frozen=True)
class User:
    """Somebody with a token: ``role`` is "read" or "write", ``orgs`` are further namespaces to write to."""

    name: str
    token: str = field(repr=False)
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def owns(self, repo_id: str) -> bool:
        """Tell whether the repo's namespace is the user's own or one of their organisations."""
        return repo_id.split("/")[0] in (self.name, *self.orgs)


@dataclass(frozen=True)
class Entry:
    """A file of a commit. ``oid`` is git's name for it: for an LFS file that of the pointer, not of the content."""

    oid: str
    size: int
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub calls the content: the SHA-256 of an LFS file, else git's blob id."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """An immutable state of a repo."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Entry]


@dataclass
class Repo:
    """A model or data set: commits by id, and the names (branches, tags, pull requests) that point to them."""

    type: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)  # "refs/pr/1" -> commit
    titles: dict[int, tuple[str, str, bool]] = field(default_factory=dict)  # number -> (title, author, is a pull)

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, tag, pull request or commit id names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit = self.branches.get(name) or self.tags.get(name) or self.pulls.get(revision) or revision
        return self.commits.get(commit)

    def history(self, commit: Commit | None) -> list[Commit]:
        """Return the commit and its ancestors, newest first."""
        chain = []
        while commit is not None:
            chain.append(commit)
            commit = self.commits.get(commit.parent) if commit.parent else None
        return chain

    def add_commit(self, parent: Commit | None, files: Mapping[str, Entry], author: str, title: str, text: str = ""):
        """Build a commit that no branch points to yet; its id follows from its content, parent and place in time."""
        date = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=len(self.commits))
        stamp = date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
        listing = [f"{path} {entry.etag}" for path, entry in sorted(files.items())]
        seed = "\n".join([parent.id if parent else "", stamp, author, title, text, *listing])
        commit = Commit(
            git_sha1(seed.encode()), parent.id if parent else None, title, text, author, stamp, dict(files)
        )
        self.commits[commit.id] = commit
        return commit

    def open_discussion(self, title: str, author: str, head: Commit | None) -> int:
        """Add a discussion, or with ``head`` a pull request whose ref points there; return its number."""
        number = len(self.titles) + 1
        self.titles[number] = (title, author, head is not None)
        if head is not None:
            self.pulls[f"refs/pr/{number}"] = head.id
        return number


class Blobs:
    """The bytes of all files, each in a file named by its SHA-256."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where an object lies, or would lie."""
        return self.folder / sha256

    def read(self, entry: Entry) -> bytes:
        """Return a file's content."""
        return self.path(entry.sha256).read_bytes()

    def receive(self, chunks: Iterable[bytes]) -> tuple[str, int]:
        """Store a stream and return its (SHA-256, size); nothing is kept if the stream ends with an exception."""
        digest, size = hashlib.sha256(), 0
        part = self.folder / f"{threading.get_ident()}.part"
        try:
            with part.open("wb") as file:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
            part.replace(self.path(digest.hexdigest()))
        finally:
            part.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def add(self, name: str, content: bytes | Path, lfs: bool | None = None) -> Entry:
        """Store a file's content, as LFS object or git blob: what the Hub would choose unless ``lfs`` says."""
        if isinstance(content, Path):
            with content.open("rb") as file:
                sha256, size = self.receive(iter(lambda: file.read(CHUNK), b""))
        else:
            sha256, size = self.receive([content])
        with self.path(sha256).open("rb") as file:
            sample = file.read(512)
        if lfs is None:
            lfs = needs_lfs(name, size, sample)
        return self.entry(sha256, size, lfs)

    def entry(self, sha256: str, size: int, lfs: bool) -> Entry:
        """Describe stored content as a file of a commit."""
        blob = lfs_pointer(sha256, size) if lfs else self.path(sha256).read_bytes()
        return Entry(git_sha1(b"blob %d\0" % len(blob) + blob), size, sha256, lfs)


def needs_lfs(name: str, size: int, sample: bytes) -> bool:
    """Tell how the Hub stores a file: LFS for listed suffixes, big files and binary content; never when empty."""
    return size > 0 and (name.endswith(LFS_SUFFIXES) or size >= LFS_SIZE or b"\0" in sample)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text that git holds in place of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_sha1(data: bytes) -> str:
    """Return git's hash of an object."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
