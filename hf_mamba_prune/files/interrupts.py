"""Signals that would end a program, held back while folders are moved or removed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Those that ask a program to end."""


class Interrupts:
    """While the context lasts, signals that raise an exception wait as long as `held` says so.

    The first one that is let through holds back those after it, so that what it ends can be cleaned up in peace. Only
    the main thread is ever interrupted; in another one, and for signals that nobody handles in Python, this does
    nothing.
    """

    def __init__(self) -> None:
        self.held = True
        self._own: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: list[int] = []
        self._ended = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._own[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._own.items():
            signal.signal(number, handler)
        if self._waiting and not self._ended:
            self._let_through()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append(number)
        if not self.held:
            self._let_through()

    def _let_through(self) -> None:
        self.held = self._ended = True
        number = self._waiting.pop(0)
        self._own[number](number, None)

    def release(self) -> None:
        """Hold no longer; what waits comes now."""
        self.held = False
        if self._waiting:
            self._let_through()
