"""A push that is repeated sees what it did before, and what others did meanwhile; no failure is waited for long."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import local_hub as hubs
import pushing
import pytest
from conftest import run
from local_hub import ALICE
from pushing import REPO

local_hub, pruned, result = hubs.local_hub, pushing.pruned, pushing.result
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PUSH = ("push", "out", "--repo-id", REPO, "--force")


def test_files_go_through_the_content_store_and_come_back(result, local_hub, monkeypatch):
    local_hub.attach(monkeypatch, result / "home", ALICE.token, xet=True)
    assert run(*PUSH) == 0
    asked = [seen.path for seen in local_hub.requests]
    assert any("/cas/v1/xorbs/" in path for path in asked) and not any("/uploads/" in path for path in asked)
    assert local_hub.files(REPO)["model.safetensors"] == Path("out/model.safetensors").read_bytes()


@pytest.mark.parametrize("options", [(), ("--create-pr",), ("--overwrite",)])
def test_a_commit_whose_answer_was_lost_is_seen_by_the_same_push(result, local_hub, capsys, options):
    if options:
        local_hub.add_model(REPO, {"config.json": b"{}", "old.bin": b"old"})
    local_hub.fail("POST", "/commit/", cut_answer=0)
    assert run(*PUSH, *options) == 1
    assert "connection to the Hub broke" in capsys.readouterr().err
    before = local_hub.commits(REPO), dict(local_hub.repos["model", REPO].pulls)
    assert run(*PUSH, *options) == 0
    assert "The Hub holds this already: " in capsys.readouterr().out
    assert (local_hub.commits(REPO), local_hub.repos["model", REPO].pulls) == before
    assert run(*PUSH, *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["already"] is True
    assert said["url"].endswith("/discussions/1" if options == ("--create-pr",) else local_hub.commits(REPO)[0].id)


def test_one_byte_makes_it_another_model(result, local_hub, capsys):
    assert run(*PUSH) == 0
    path = Path("out/model.safetensors")
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    assert run(*PUSH) == 1
    assert "holds a model already" in capsys.readouterr().err


@pytest.mark.parametrize("new", [True, False])
def test_a_commit_between_the_look_and_the_push_is_not_overwritten(result, local_hub, capsys, new):
    if not new:
        local_hub.add_model(REPO, {"config.json": b"{}", "old.bin": b"old"})
    theirs = {"theirs.bin": b"theirs", "config.json": b"[]"}
    local_hub.fail("POST", "/preupload/", meanwhile=lambda: local_hub.add_model(REPO, theirs))
    assert run(*PUSH, "--overwrite") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    newest = local_hub.commits(REPO)[0]
    assert newest.title == "Add files" and newest.id in error and "changed while this was pushed" in error
    assert "theirs.bin" in error and ("changed: config.json" in error) == (not new)
    assert run(*PUSH) == 1
    assert "holds a model already" in capsys.readouterr().err
    assert run(*PUSH, "--overwrite") == 0
    assert "theirs.bin" not in local_hub.files(REPO)


def dead_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_store_that_is_dead_is_given_up(result, local_hub, capsys, monkeypatch):
    local_hub.attach(monkeypatch, result / "home", ALICE.token, xet=True)
    local_hub.store_url = f"http://127.0.0.1:{dead_port()}"
    assert run(*PUSH) == 1
    error = capsys.readouterr().err
    assert "content store did not take" in error and "HF_HUB_DISABLE_XET=1" in error and "127.0.0.1" not in error
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    local_hub.attach(monkeypatch, result / "home", ALICE.token)
    assert run(*PUSH) == 0


def test_a_pause_of_minutes_is_not_waited_for(result, local_hub, capsys):
    failure = local_hub.fail("POST", "/preupload/", 429, retry_after=300, times=None)
    start = time.monotonic()
    assert run(*PUSH) == 1
    assert time.monotonic() - start < 20 and failure.hits == 1
    assert "too many requests: wait 300 seconds" in capsys.readouterr().err
