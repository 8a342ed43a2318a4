"""Progress: one way to make bars, one switch to silence them, and one place to follow a run from.

Bars show on a terminal only. `follow` hears the same, for a program that shows progress in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
_silent = False


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One remark of a run.

    Args:
        stage: what is going on: `evaluate`, `calibrate`, `mask`, `reconstruct`, `recover` ...
        done: how much of it.
        total: of how much; None where that is not known.
        values: what was measured: `sparsity` (0 to 1), `loss` (nats a token), `perplexity`.
    """

    stage: str
    done: int = 0
    total: int | None = None
    values: dict[str, float] = field(default_factory=dict)


Listener = Callable[[Progress], None]
_listeners: list[Listener] = []


@contextmanager
def follow(listener: Listener) -> Iterator[None]:
    """While the context lasts `listener` hears every remark, in the thread that works."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell(stage: str, done: int = 0, total: int | None = None, **values: float) -> None:
    """Make a remark."""
    for listener in _listeners:
        listener(Progress(stage=stage, done=done, total=total, values=values))


def silence(silent: bool = True) -> None:
    """Switch all bars off, or on again."""
    global _silent
    _silent = silent


def is_silent() -> bool:
    """Whether bars are off."""
    return _silent


def track(items: Iterable[Item], what: str, unit: str, total: int | None = None) -> tqdm:
    """Iterate with a bar that vanishes when it is done."""
    if _listeners:
        total = len(items) if total is None and isinstance(items, Sized) else total
        items = _told(items, what, total)
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=True if _silent else None)


def _told(items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
    tell(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        tell(what, done, total)
