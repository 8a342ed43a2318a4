"""What this machine gives to its visitors; each number can be set by an environment variable."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of the service; field `per_visitor` is set by `SPACE_PER_VISITOR`, and so on.

    Args:
        running: prunings at once.
        waiting: that may stand in the queue.
        per_visitor: prunings of one visitor, running or waiting.
        per_address: of one network address, which may be a whole school.
        minutes: after which a job is stopped, and above which it is refused before it starts.
        memory_gb: of one job.
        disk_gb: of all results and downloads together.
        keep_minutes: how long a result can be fetched.
        left_minutes: how long it waits for a visitor who has closed the page, or went to sign in.
        download_gb: of a model's weights.
    """

    running: int = 1
    waiting: int = 8
    per_visitor: int = 1
    per_address: int = 4
    minutes: float = 20.0
    memory_gb: float = 8.0
    disk_gb: float = 20.0
    keep_minutes: float = 30.0
    left_minutes: float = 3.0
    download_gb: float = 4.0

    @classmethod
    def from_environment(cls) -> Limits:
        """The defaults, with what the environment sets.

        Raises:
            ValueError: a variable that is not a number, or negative.
        """
        found = {}
        for field in fields(cls):
            name = f"SPACE_{field.name.upper()}"
            if name in os.environ:
                value = type(field.default)(os.environ[name])
                if value < 0:
                    raise ValueError(f"{name} is {value}; expected 0 or more.")
                found[field.name] = value
        return cls(**found)
