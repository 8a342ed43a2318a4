"""The Space's service: a bounded queue of processes that leave nothing behind, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING, Job, Service, Visitor
from limits import Limits
from orders import Refusal

from hf_mamba_prune import demo
from hf_mamba_prune.measure.speed import STOCK, measure_apart

ANNE, BERT = Visitor("anne", "10.0.0.1"), Visitor("bert", "10.0.0.2")
TOKEN = "hf_" + "t" * 34


def greet(folder: Path, say: Callable, name: str) -> str:
    say(f"hello {name}")
    (folder / "model.zip").write_text(name)
    print("printed, but to the job's own log")
    return name.upper()


def sleep(folder: Path, say: Callable) -> None:
    """With a process of its own, which must end with it."""
    child = subprocess.Popen(["sleep", "600"])
    say((os.getpid(), child.pid))
    time.sleep(600)


def chatter(folder: Path, say: Callable) -> None:
    """Is heard more often than anybody waits for it."""
    for turn in range(6000):
        say(turn)
        time.sleep(0.1)


def measure(folder: Path, say: Callable) -> None:
    """In a process that is no child of this one, and takes minutes."""
    say(os.getpid())
    measure_apart(STOCK, demo.MODEL, 100_000)


def swallow(folder: Path, say: Callable) -> int:
    return len(bytearray(600_000_000))


def die(folder: Path, say: Callable) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(folder: Path, say: Callable) -> None:
    raise ValueError(f"the file {folder}/model/config.json is broken")


def tokens(folder: Path, say: Callable) -> dict:
    """Backwards, so that what the job sends is not itself a token."""
    return {name: value[::-1] for name, value in os.environ.items() if "TOKEN" in name}


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Service]]:
    """Makes services."""
    made = []

    def make(**limits: float) -> Service:
        made.append(Service(Limits(**limits), tmp_path / "space"))
        return made[-1]

    yield make
    for service in made:
        service.close()


def ended(job: Job) -> Job:
    with job.changed:
        assert job.changed.wait_for(lambda: job.over, 60)
    return job


def said(job: Job) -> object:
    assert job.wait(0, 60)
    return job.messages[0][1]


def test_a_job_says_things_and_gives_a_result(start, capfd):
    service = start()
    job = ended(service.submit(ANNE, greet, "anne"))
    assert (job.state, job.result, said(job)) == (DONE, "ANNE", "hello anne")
    assert "printed" not in capfd.readouterr().out
    assert "printed" in (job.folder / "log.txt").read_text()
    assert service.find(job.id) is job and len(job.id) >= 32


def test_one_after_the_other_and_cancelled_while_waiting(start):
    service = start()
    first, second, third = (service.submit(Visitor(name, name), sleep) for name in "abc")
    said(first)
    assert [job.state for job in (first, second, third)] == [RUNNING, WAITING, WAITING]
    assert [service.position(job) for job in (first, second, third)] == [0, 1, 2]
    service.cancel(second)
    assert (second.state, service.position(third)) == (CANCELLED, 1)
    service.cancel(first)
    said(third)
    assert third.state == RUNNING


def test_what_takes_a_moment_goes_first(start):
    service = start()
    running = service.submit(ANNE, sleep)
    said(running)
    waiting = service.submit(BERT, sleep)
    quick = service.submit(Visitor("carl", ""), greet, "carl", first=True)
    assert [service.position(job) for job in (quick, waiting)] == [1, 2]


@pytest.mark.parametrize(
    "limits, visitors, reason",
    [
        (dict(per_visitor=1), [ANNE, ANNE], "You have a job here already"),
        (dict(per_address=1), [ANNE, Visitor("other", ANNE.address)], "from your network"),
        (dict(waiting=1), [ANNE, BERT, Visitor("carl", "")], "The queue is full: 1 others"),
        (dict(disk_gb=0), [ANNE], "The disk of this machine is full"),
    ],
)
def test_limits_are_kept_with_a_sentence(start, limits, visitors, reason):
    service = start(**limits)
    if limits == dict(disk_gb=0):
        (service.folder / "hub").mkdir()
        (service.folder / "hub" / "weights").write_bytes(b"1")
    for visitor in visitors[:-1]:
        job = service.submit(visitor, sleep)
        if visitor is visitors[0]:
            said(job)
    with pytest.raises(Refusal, match=reason):
        service.submit(visitors[-1], sleep)


@pytest.mark.parametrize(
    "work, error",
    [
        (die, "stopped by the system"),
        (swallow, "not enough memory"),
        (refuse, "The file its folder is broken"),
    ],
)
def test_a_job_that_fails_leaves_the_next_one_alone(start, work, error):
    service = start(memory_gb=0.3)
    job = ended(service.submit(ANNE, work))
    assert job.state == FAILED and error in job.error
    assert ended(service.submit(ANNE, greet, "next")).result == "NEXT"
    assert service.alive()


@pytest.mark.parametrize("work", [sleep, chatter])
def test_time_is_bounded(start, work):
    job = ended(start(minutes=0.01).submit(ANNE, work))
    assert job.state == FAILED and "which is the limit here" in job.error


@pytest.mark.parametrize("end", ["cancel", "leave", "close"])
def test_all_processes_and_files_of_a_job_end_with_it(start, end):
    service = start(left_minutes=0)
    job = service.submit(ANNE, sleep)
    processes = [psutil.Process(pid) for pid in said(job)]
    dict(cancel=lambda: service.cancel(job), leave=lambda: service.leave("anne"), close=service.close)[end]()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    until = time.monotonic() + 20
    while job.folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not job.folder.exists()


def test_a_process_that_measures_ends_with_its_job(start):
    service = start()
    said(service.submit(BERT, greet, "the server of processes has started"))
    before = set(psutil.Process().children(recursive=True))
    job = service.submit(ANNE, measure)
    until = time.monotonic() + 60
    while len(started := set(psutil.Process().children(recursive=True)) - before) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert said(job) in {process.pid for process in started} and len(started) == 2
    service.cancel(job)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_token_reaches_only_the_process_of_its_job(start, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_owner_of_the_space")
    service = start(per_visitor=2)
    with_token = ended(service.submit(ANNE, tokens, secret=TOKEN))
    without = ended(service.submit(BERT, tokens))
    assert with_token.result == {"HF_TOKEN": TOKEN[::-1]}
    assert without.result == {}
    assert with_token.secret is None and TOKEN not in repr(with_token)
    assert not [path for path in service.folder.rglob("*") if path.is_file() and TOKEN in path.read_text()]


def test_a_result_waits_for_its_visitor_and_for_nobody_else(start):
    service = start(left_minutes=5)
    job = ended(service.submit(ANNE, greet, "anne"))
    service.leave("anne")
    service.sweep()
    assert service.adopt("guessed", BERT) is None
    back = Visitor("anne after signing in", ANNE.address)
    assert service.adopt(job.id, back) is job
    assert service.last(back.session, greet) is job and service.last("anne", greet) is None


def test_old_results_are_swept_away(start):
    service = start(keep_minutes=0)
    job = ended(service.submit(ANNE, greet, "anne"))
    service.sweep()
    assert service.find(job.id) is None and not job.folder.exists()


def test_downloads_are_swept_away_when_nothing_runs(start):
    service = start(disk_gb=1e-6)
    downloads = service.folder / "hub"
    downloads.mkdir()
    running = service.submit(ANNE, sleep)
    said(running)
    (downloads / "weights").write_bytes(bytes(1000))
    service.sweep()
    assert downloads.exists()
    service.cancel(running)
    service.sweep()
    assert not downloads.exists()


def test_a_service_begins_without_what_another_left(tmp_path):
    left = tmp_path / "jobs" / "old"
    left.mkdir(parents=True)
    Service(Limits(), tmp_path).close()
    assert not left.exists()
