"""Progress bars: one way to make them, one switch to silence them. Bars show on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
_silent = False


def silence(silent: bool = True) -> None:
    """Switch all bars off, or on again."""
    global _silent
    _silent = silent


def is_silent() -> bool:
    """Whether bars are off."""
    return _silent


def track(items: Iterable[Item], what: str, unit: str, total: int | None = None) -> tqdm:
    """Iterate with a bar that vanishes when it is done."""
    return tqdm(items, desc=what, unit=unit, total=total, leave=False, disable=True if _silent else None)
