"""Signals end the command as an exception does, so that nothing half-written stays."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hf_mamba_prune.files.interrupts import ENDING


def _end(number: int, frame: FrameType | None) -> None:
    """Exit with the code that shells give to this signal; processes that work for this one are not waited for."""
    for child in multiprocessing.active_children():
        child.terminate()
    raise SystemExit(128 + number)


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """While the context lasts SIGINT, SIGTERM and SIGHUP raise SystemExit in the main thread.

    What was ignored, by `nohup` for example, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
