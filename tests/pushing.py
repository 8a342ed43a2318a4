"""What the tests of pushing share: a folder with a tiny model in which the command runs as alice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import run
from local_hub import ALICE
from tiny_models import build_model, build_tokenizer

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60
REPO = "alice/model-pruned-70"
SMALL = ("--calibration", "text.txt", "--calibration-samples", "3", "--calibration-length", "16", "--steps", "1")
PRUNE = ("model", "--sparsity", "0.7", *SMALL, "--eval", "text.txt", "--window", "32", "--output", "out", "--force")


@pytest.fixture
def place(tmp_path, monkeypatch, local_hub) -> Path:
    """A folder with a tiny model and a text, in which the command runs as alice."""
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    monkeypatch.chdir(tmp_path)
    make_place()
    return tmp_path


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    """A place with a finished result in `out`, which no test may change."""
    folder = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_place()
        assert run(*PRUNE, "--quiet") == 0
    return folder


@pytest.fixture
def result(pruned, tmp_path, monkeypatch, local_hub) -> Path:
    """A copy of `pruned`, in which the command runs as alice."""
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True)
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_place() -> None:
    """Put the model and the text into the current folder."""
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")


# The requests of a push, by what they are for: method and path, as patterns.
OF_THE_HUB = {
    "who": ("GET", "/api/whoami"),
    "look": ("GET", f"/api/models/{REPO}$"),
    "create": ("POST", "/api/repos/create"),
    "card": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "commit": ("POST", "/commit/"),
}
OF_LFS = {
    "batch": ("POST", "/objects/batch"),
    "upload": ("PUT", "/uploads/"),
    "verify": ("POST", "/lfs/verify"),
}
OF_XET = {
    "token": ("GET", "/xet-write-token/"),
    "chunk": ("GET", "/cas/v1/chunks/"),
    "grant": ("POST", "/cas/v1/xorb-grants/"),
    "xorb": ("POST", "/cas/v1/xorbs/"),
    "shard": ("POST", "/cas/v./shards"),
}
