"""Jobs of visitors: a bounded queue, one process for each job, and nothing left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import worker
from limits import Limits
from orders import Refusal

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["hf_mamba_prune"])  # its seconds of importing are spent once


@dataclass(frozen=True)
class Visitor:
    """Who asks.

    Args:
        session: of the browser or client; never shown to others.
        address: of the network.
    """

    session: str
    address: str


@dataclass(eq=False)
class Job:
    """One piece of work; changed by its service only.

    Args:
        id: cannot be guessed: whoever knows it may fetch the result.
        visitor: whose.
        folder: what it writes; removed with it.
        state: `waiting`, `running`, `done`, `failed` or `cancelled`.
        messages: what its process said, with the seconds since its start.
        result: what the work gave back.
        error: one sentence.
        started, ended: seconds of the monotonic clock.
        left: when its visitor went away; 0: still there.
    """

    visitor: Visitor
    folder: Path
    work: Callable[..., object]
    arguments: tuple
    secret: str | None = field(default=None, repr=False)
    heavy: bool = True
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    state: str = WAITING
    messages: list = field(default_factory=list)
    result: object = None
    error: str | None = None
    started: float = 0.0
    ended: float = 0.0
    left: float = 0.0
    process: object = field(default=None, repr=False)
    changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (DONE, FAILED, CANCELLED)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0

    def wait(self, seen: int, seconds: float) -> int:
        """Wait for more messages than `seen` or for the end; how many there are now."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.messages) > seen or self.over, seconds)
            return len(self.messages)

    def set(self, state: str, error: str | None = None) -> None:
        """Go on to another state, unless it is over."""
        with self.changed:
            if not self.over:
                self.state, self.error = state, error
                if self.over:
                    self.ended, self.secret = time.monotonic(), None
            self.changed.notify_all()


class Service:
    """Runs jobs within the limits of the machine.

    Args:
        limits: of the machine.
        folder: for everything that jobs write; it is emptied.
    """

    def __init__(self, limits: Limits, folder: Path) -> None:
        self.limits, self.folder = limits, folder
        self.jobs: dict[str, Job] = {}
        self._queues = {True: deque(), False: deque()}
        self._lock = threading.Condition()
        self._open = True
        shutil.rmtree(folder / "jobs", ignore_errors=True)
        (folder / "jobs").mkdir(parents=True, mode=0o700)
        lanes = [True] * limits.running + [False] * 2
        self._threads = [threading.Thread(target=self._serve, args=(heavy,), daemon=True) for heavy in lanes]
        self._threads.append(threading.Thread(target=self._sweep_for_ever, daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        visitor: Visitor,
        work: Callable[..., object],
        *arguments: object,
        secret: str | None = None,
        heavy: bool = True,
        first: bool = False,
    ) -> Job:
        """Put a job into the queue.

        Args:
            visitor: whose it is.
            work: a function of `worker`; it gets the job's folder, a function that sends messages, and `arguments`.
            secret: the visitor's access token, for the process of this job only.
            heavy: takes the processor, so that it stands in the queue of prunings: what runs at the same time would
                wait for the other at every barrier, and be timed wrongly.
            first: goes to the head of the queue, because it takes a moment only.

        Raises:
            Refusal: the queue is full, the visitor has one already, or the disk is full.
        """
        with self._lock:
            self._check_room(visitor, heavy)
            job = Job(visitor, Path(), work, arguments, secret, heavy)
            job.folder = self.folder / "jobs" / job.id
            job.folder.mkdir(mode=0o700)
            self.jobs[job.id] = job
            (self._queues[heavy].appendleft if first else self._queues[heavy].append)(job)
            self._lock.notify_all()
        return job

    def _check_room(self, visitor: Visitor, heavy: bool) -> None:
        going = [job for job in self.jobs.values() if not job.over and job.heavy == heavy]
        if sum(job.visitor.session == visitor.session for job in going) >= self.limits.per_visitor:
            raise Refusal("You have a job here already: wait for it, or cancel it.")
        if sum(job.visitor.address == visitor.address for job in going) >= self.limits.per_address:
            raise Refusal("There are several jobs from your network already: try again when one of them is done.")
        if len(self._queues[heavy]) >= self.limits.waiting:
            raise Refusal(
                f"The queue is full: {len(self._queues[heavy])} others are waiting. Try again in a few minutes."
            )
        if heavy and folder_bytes(self.folder) > self.limits.disk_gb * 1e9:
            raise Refusal("The disk of this machine is full at the moment: try again in half an hour.")

    def position(self, job: Job) -> int:
        """How many are served before a waiting job."""
        with self._lock:
            queue = self._queues[job.heavy]
            return queue.index(job) + 1 if job in queue else 0

    def alive(self) -> bool:
        """Whether every lane still serves."""
        return self._open and all(thread.is_alive() for thread in self._threads)

    def last(self, session: str, work: Callable[..., object]) -> Job | None:
        """A visitor's newest job of a kind."""
        own = [job for job in self.jobs.values() if job.visitor.session == session and job.work is work]
        return own[-1] if own else None

    def find(self, id: str) -> Job | None:
        """A job by its id, which only its visitor has been told."""
        return self.jobs.get(id)

    def cancel(self, job: Job) -> None:
        """Stop a job, wherever it is."""
        with self._lock:
            if job in self._queues[job.heavy]:
                self._queues[job.heavy].remove(job)
        job.set(CANCELLED, "Cancelled.")
        _kill(job)

    def leave(self, session: str) -> None:
        """A visitor has gone: stop what runs; a result waits a little, in case they come back."""
        for job in [job for job in self.jobs.values() if job.visitor.session == session]:
            self.cancel(job)
            job.left = time.monotonic()

    def adopt(self, id: str, visitor: Visitor) -> Job | None:
        """Give a finished job to a visitor who has come back with its id, after signing in or loading again."""
        job = self.find(id)
        if job is None or job.state != DONE:
            return None
        job.visitor, job.left = visitor, 0.0
        return job

    def close(self) -> None:
        """Stop everything and remove all files."""
        self._open = False
        with self._lock:
            self._lock.notify_all()
        for job in list(self.jobs.values()):
            self.cancel(job)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _serve(self, heavy: bool) -> None:
        """One lane: job after job."""
        while self._open:
            with self._lock:
                self._lock.wait_for(lambda: self._queues[heavy] or not self._open)
                if not self._open:
                    return
                job = self._queues[heavy].popleft()
                self._lock.notify_all()
            self._run(job)

    def _run(self, job: Job) -> None:
        """A job in a process of its own, to its end, however that comes."""
        hear, say = PROCESSES.Pipe(duplex=False)
        memory = int(self.limits.memory_gb * 1e9)
        process = PROCESSES.Process(
            target=worker.run, args=(say, job.work, job.folder, job.arguments, job.secret, memory)
        )
        job.started = time.monotonic()
        job.process = process
        try:
            process.start()
        except OSError as error:
            job.set(FAILED, f"The job could not be started ({type(error).__name__}): try again in a minute.")
            return
        say.close()
        job.set(RUNNING)
        self._listen(job, hear)
        _kill(job)
        process.join()
        hear.close()
        if job.state == CANCELLED:
            shutil.rmtree(job.folder, ignore_errors=True)

    def _listen(self, job: Job, hear) -> None:
        """Take what the process says until it ends or its time is over."""
        until = job.started + 60 * self.limits.minutes
        while not job.over:
            if time.monotonic() > until:
                job.set(FAILED, f"Stopped after {self.limits.minutes:g} minutes, which is the limit here.")
                return
            try:
                if not hear.poll(0.5):
                    continue
                kind, value = hear.recv()
            except (EOFError, OSError):
                job.set(FAILED, "The job was stopped by the system, most likely for want of memory.")
                return
            with job.changed:
                if kind == "message":
                    job.messages.append((time.monotonic() - job.started, value))
                elif kind == "result":
                    job.result = value
                job.changed.notify_all()
            if kind in ("result", "error"):
                job.set(*((DONE,) if kind == "result" else (FAILED, value)))

    def _sweep_for_ever(self) -> None:
        while self._open:
            time.sleep(5)
            self.sweep()

    def sweep(self) -> None:
        """Remove results that are too old, and downloads when they are too many and nothing runs."""
        now = time.monotonic()
        for job in list(self.jobs.values()):
            old = job.over and now - job.ended > 60 * self.limits.keep_minutes
            if old or (job.left and now - job.left > 60 * self.limits.left_minutes):
                self.remove(job)
        downloads = self.folder / "hub"
        with self._lock:
            idle = not any(self._queues.values()) and all(job.over for job in self.jobs.values())
            if idle and downloads.is_dir() and folder_bytes(downloads) > self.limits.disk_gb / 2 * 1e9:
                shutil.rmtree(downloads, ignore_errors=True)

    def remove(self, job: Job) -> None:
        """Forget a job and its files."""
        self.jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)


def _kill(job: Job) -> None:
    """End a job's process and all that it started."""
    process = job.process
    if process is not None and process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
        process.kill()


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder, links not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
