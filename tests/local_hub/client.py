"""Points the real client at a local Hub: another process by its environment, this one by its settings.

huggingface_hub reads its environment once, when it is imported. In this process its settings are changed where they
are kept: every module but ``hf_api`` (whose functions belong to one ``HfApi`` made at import) looks them up in
``constants`` at the moment of use, transformers does the same, and ``datasets`` keeps copies in its ``config``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "all_proxy")


WITHOUT_XET = {"HF_HUB_DISABLE_XET": "1"}
WITH_XET = {
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "HF_XET_XORB_COMPRESSION_POLICY": "none",  # the local store unpacks nothing
    "HF_XET_TELEMETRY_ENABLED": "false",
}


def environment(url: str, home: Path, token: str | None, xet: bool = False) -> dict[str, str]:
    """Return this process's environment, changed so that the Hub's client talks to ``url`` and nothing else.

    Args:
        url: Address of the Hub.
        home: Folder for caches and tokens, in place of the user's own.
        token: Token of the user, None for nobody.
        xet: Whether files go to the content store, as they do for users; else to the storage of LFS objects.
    """
    kept = {name: value for name, value in os.environ.items() if not name.lower().startswith(lowered(FOREIGN))}
    ours = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        # Otherwise transformers asks a service outside to convert a model that has only pickled weights.
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    ours |= WITH_XET if xet else WITHOUT_XET
    return kept | ours | ({} if token is None else {"HF_TOKEN": token})


def lowered(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in lower case."""
    return tuple(name.lower() for name in names)


def attach(url: str, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None, xet: bool = False) -> None:
    """Point the client of this process at ``url`` until ``monkeypatch`` is undone; see :func:`environment`.

    The environment of this process changes too, for the processes that it starts. The waits between the client's
    retries shrink to hundredths of a second, their number stays; a ``Retry-After`` is still waited for.
    """
    import datasets
    from huggingface_hub import HfFileSystem, constants, hf_api
    from huggingface_hub.utils import _http, _xet
    from transformers.utils import hub

    changed = environment(url, home, token, xet)
    for name in [name for name in os.environ if name not in changed]:
        monkeypatch.delenv(name)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    settings = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_XET": not xet,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    for function in (_http.http_backoff, _http.http_stream_backoff.__wrapped__):
        monkeypatch.setitem(function.__kwdefaults__, "base_wait_time", 0.01)
        monkeypatch.setitem(function.__kwdefaults__, "max_wait_time", 0.01)
    monkeypatch.setattr(hub, "_hf_api", None)  # transformers keeps a client with the address of its first use
    attach_datasets(url, monkeypatch, home, datasets.config)
    HfFileSystem.clear_instance_cache()
    _http.close_session()
    _xet.abort_xet_session()  # the next one reads the environment anew


def attach_datasets(url: str, monkeypatch: pytest.MonkeyPatch, home: Path, config: object) -> None:
    """Change the copies of the settings that ``datasets`` keeps."""
    cache = home / "datasets"
    settings = {
        "HF_ENDPOINT": url,
        "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": cache,
        "DOWNLOADED_DATASETS_PATH": cache / "downloads",
        "EXTRACTED_DATASETS_PATH": cache / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        # Converted copies of data sets lie on a host of their own, "datasets-server." before the endpoint's name.
        "USE_PARQUET_EXPORT": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(config, name, value)
