"""What a repository holds at one moment, and whether that is what a folder holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoSibling

from hf_mamba_prune.hub_answers import hub_errors

HUBS_OWN = ".gitattributes"
"""The Hub writes it into every new repository."""

_PIECE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Held:
    """A branch of a repository at one moment.

    Args:
        commit: the newest, 40 hexadecimal digits; None where there is no repository yet.
        private: whether only its owners see it.
        files: size in bytes and hash by name; the hash is SHA-256 of what lies in the large file store, else git's.
    """

    commit: str | None = None
    private: bool = False
    files: Mapping[str, tuple[int | None, str]] = field(default_factory=dict)

    @classmethod
    def look(cls, repo: str, revision: str | None) -> Held:
        """Ask the Hub.

        Raises:
            ValueError: not a valid id.
            RuntimeError: no such branch, or the Hub refuses.
        """
        with hub_errors(repo):
            try:
                info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=30)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return cls()
            if info.sha is None or info.siblings is None:
                raise ValueError("neither a commit nor files")  # an answer of another shape
            files = {sibling.rfilename: (sibling.size, _hash(sibling)) for sibling in info.siblings}
            return cls(commit=info.sha, private=bool(info.private), files=files)

    def same(self, files: Mapping[str, Path | bytes]) -> bool:
        """Whether it holds these files and no others; files are read only where their sizes are the same."""
        if self.files.keys() - {HUBS_OWN} != files.keys() - {HUBS_OWN}:
            return False
        known = {name: self.files[name] for name in files.keys() - {HUBS_OWN}}
        if any(size != _size(files[name]) for name, (size, _) in known.items()):
            return False
        return all(wanted == _digest(files[name], len(wanted)) for name, (_, wanted) in known.items())

    def changes(self, later: Held) -> str:
        """What another state has that this one has not, in words."""
        both = self.files.keys() & later.files.keys()
        found = {
            "new": later.files.keys() - self.files.keys(),
            "changed": {name for name in both if self.files[name] != later.files[name]},
            "gone": self.files.keys() - later.files.keys(),
        }
        return "; ".join(f"{kind}: {_few(sorted(names))}" for kind, names in found.items() if names) or "no file"


def _hash(sibling: RepoSibling) -> str:
    return sibling.lfs.sha256 if sibling.lfs else sibling.blob_id or ""


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _digest(content: Path | bytes, digits: int) -> str:
    """SHA-256 where 64 digits are asked for, else git's hash of the content."""
    digest = hashlib.sha256() if digits == 64 else hashlib.sha1(b"blob %d\0" % _size(content), usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with content.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
