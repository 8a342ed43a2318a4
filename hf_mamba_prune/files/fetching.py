"""A Hub id or a folder -> a folder that holds what is needed of a model, and nothing else."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging

from hf_mamba_prune.files.version_1 import is_version_1
from hf_mamba_prune.files.weights import INDICES, WHOLE, shard_names
from hf_mamba_prune.hub_answers import ODD_ANSWER, UNREADABLE

Weights = Literal["own", "packed"]

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")


def fetch(source: str, revision: str | None = None, *weights: Weights) -> tuple[Path, str | None]:
    """The folder that holds a model's files, downloaded when `source` is a Hub id; and the commit.

    Folders inside a repository (checkpoints of its training, other formats) are left where they are.

    Args:
        source: Hub id or folder.
        revision: branch, tag or commit of a Hub id.
        *weights: which weights too: those of the model itself, those of the packed checkpoint in `packed/`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path, None
    if path.exists() or source.startswith((".", "/", "~")):
        raise ValueError(f"{source} is not a folder; expected a folder with config.json, or a Hub id like user/name.")
    with hub_errors(source, revision):
        folder = _download(source, revision, _SMALL)
        commit = folder.name  # from here on the same commit, whatever is pushed meanwhile
        # Of a packed form beside it what says that there is one, and the rest when it is wanted.
        beside = (*_SMALL, "*.safetensors") if "packed" in weights else ("config.json",)
        _download(source, commit, tuple(f"packed/{name}" for name in beside), outside="packed/*/*")
        if "own" in weights:
            _fetch_weights(source, commit, folder)
    return folder, commit


def fetch_tokenizer(source: str) -> Path:
    """The same for a tokenizer: the small files alone."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    with hub_errors(source, None):
        return _download(source, None, _SMALL)


def _download(source: str, revision: str | None, names: tuple[str, ...], outside: str = "*/*") -> Path:
    """Files that fit one of the patterns, but not `outside`; that there are none is no reason for a remark."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        return _snapshot(source, revision, list(names), outside)
    finally:
        hub_logging.set_verbosity(verbosity)


def _snapshot(source: str, revision: str | None, wanted: list[str], left: str) -> Path:
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted, ignore_patterns=[left]))
    except HFValidationError:
        raise
    except UNREADABLE as error:
        raise RuntimeError(f"the Hub's answer about {source} {ODD_ANSWER}.") from error


def _fetch_weights(source: str, commit: str, folder: Path) -> None:
    """The files that will be read, in the order of `weights.weight_files`: of several forms only the first."""
    if is_version_1(folder):
        _download(source, commit, ("packed-*.safetensors",))
        return
    for whole, index in zip(WHOLE, INDICES, strict=True):
        _download(source, commit, (whole,))
        if (folder / whole).is_file():
            return
        if (folder / index).is_file():
            _download(source, commit, tuple(glob.escape(name) for name in shard_names(folder / index)))
            return


@contextmanager
def hub_errors(source: str, revision: str | None) -> Iterator[None]:
    """The Hub's answers as one sentence each."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{source!r} is neither a folder nor a valid Hub id.") from error
    except GatedRepoError as error:
        raise RuntimeError(
            f"{source} is gated: accept its terms on the Hub, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no folder and no Hub model {source!r} (or it is private: log in with `hf auth login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{source} has no revision {revision!r}.") from error
    except LocalEntryNotFoundError as error:
        raise RuntimeError(
            f"{source} is not in the local cache and the Hub cannot be reached: check the network, or give a folder."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise RuntimeError(
            f"the Hub refused {source} (HTTP {status}): try again, or check `hf auth whoami`."
        ) from error
    except httpx2.TransportError as error:
        raise RuntimeError(
            f"the connection to the Hub broke while fetching {source} ({type(error).__name__}): try again, what has "
            "come is kept."
        ) from error
