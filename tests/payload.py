"""What a pickle may do to those who load it."""

from __future__ import annotations

from pathlib import Path


class Payload:
    """Makes a file when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
