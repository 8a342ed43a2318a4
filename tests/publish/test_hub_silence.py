"""A Hub or a content store that takes a request and says nothing is given up within a minute."""

from __future__ import annotations

import time

import local_hub as hubs
import pushing
import pytest
from conftest import run
from local_hub import ALICE
from pushing import OF_LFS, OF_THE_HUB, OF_XET, REPO

from hf_mamba_prune import hub_answers

local_hub, pruned, result = hubs.local_hub, pushing.pruned, pushing.result
PUSH = ("push", "out", "--repo-id", REPO, "--force")
WITHOUT_XET, WITH_XET = OF_THE_HUB | OF_LFS, OF_XET | {"store": (".*", "/cas/")}
CASES = [(False, name) for name in WITHOUT_XET] + [(True, name) for name in WITH_XET]


@pytest.mark.slow
@pytest.mark.parametrize(("xet", "name"), CASES)
def test_a_silent_hub_is_given_up_within_a_minute(result, local_hub, monkeypatch, capsys, xet, name):
    local_hub.attach(monkeypatch, result / "home", ALICE.token, xet=xet)
    monkeypatch.delenv("HF_XET_CLIENT_RETRY_BASE_DELAY", raising=False)
    failure = local_hub.fail(*(WITH_XET if xet else WITHOUT_XET)[name], delay=1000, times=None)
    start = time.monotonic()
    code = run(*PUSH)
    seconds = time.monotonic() - start
    error = capsys.readouterr().err
    assert failure.hits and seconds < 60 - PAUSES * (failure.hits == 6)
    assert code == 1 and "The result is in out; push it with: " in error and "Traceback" not in error


PAUSES = 1 + 2 + 4 + 8 + 8
"""Seconds that the client waits between its six tries; in these tests next to nothing."""


def test_all_tries_of_a_request_together_take_less_than_a_minute():
    assert all(len(seconds) == 6 and sum(seconds) + PAUSES < 60 for seconds in hub_answers._SECONDS.values())
    assert hub_answers._COMMIT_SECONDS < 60


def test_what_is_asked_again_and_again_without_an_answer_is_waited_for_less(result, local_hub, monkeypatch, capsys):
    for name, seconds in hub_answers._SECONDS.items():
        monkeypatch.setitem(hub_answers._SECONDS, name, tuple(second / 20 for second in seconds))
    failure = local_hub.fail("POST", "/preupload/", delay=1000, times=None)
    start = time.monotonic()
    assert run(*PUSH) == 1
    assert failure.hits == 6 and time.monotonic() - start < 10
    assert "The result is in out; push it with: " in capsys.readouterr().err
    failure.times = 0
    assert run(*PUSH) == 0


@pytest.mark.parametrize("name", ["xorb", "store"])
def test_a_store_that_is_silent_is_given_up(result, local_hub, monkeypatch, capsys, name):
    local_hub.attach(monkeypatch, result / "home", ALICE.token, xet=True)
    monkeypatch.setattr(hub_answers, "_SILENCE", 2)
    failure = local_hub.fail(*WITH_XET[name], delay=1000, times=None)
    start = time.monotonic()
    assert run(*PUSH) == 1
    assert failure.hits and time.monotonic() - start < 20
    error = capsys.readouterr().err.splitlines()[-1]
    assert "content store did not take" in error and "it does not answer" in error and "push it with: " in error
    failure.times = 0
    assert run(*PUSH) == 0


def test_a_large_file_is_sent_for_as_long_as_a_slow_line_takes(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(hub_answers, "_SILENCE", 0)
    monkeypatch.setattr(hub_answers, "abort_xet_session", lambda: ended.append("ended"))
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    with hub_answers.bounded_store([tmp_path / "large"]):
        time.sleep(0.3)
    assert not ended and (1 << 20) / hub_answers._SLOWEST == 8
    with hub_answers.bounded_store([]):
        time.sleep(0.3)
    assert ended
