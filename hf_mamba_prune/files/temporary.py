"""Temporary folders beside an output: locked by the process that writes them, removed by the next where one died."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

_MARK = "hf-mamba-prune"
_ASIDE = ".old"


class Temporary:
    """A new hidden folder beside an output, locked until this process dies or removes it.

    The lock is on the folder itself, so that it goes with the folder wherever that is moved.

    Args:
        output: absolute, in a folder that exists.
    """

    def __init__(self, output: Path) -> None:
        held = None
        while held is None:  # another process may take the new folder for a dead one's, before it is locked
            self.path = Path(tempfile.mkdtemp(prefix=f".{output.name}.{_MARK}-", dir=output.parent))
            held = _lock(self.path, wait=True)
        self._locks = held
        self.aside = self.path.with_name(self.path.name + _ASIDE)

    def set_aside(self, folder: Path) -> None:
        """Move what stands in the way to `aside`, and lock that too."""
        self._locks += _lock(folder, wait=False) or []
        folder.rename(self.aside)

    def put_back(self, folder: Path) -> Path:
        """Give what was set aside its name again, or where that is taken one that shows; the new path."""
        try:
            return self.aside.rename(folder)
        except OSError:
            return _show(self.aside)

    def keep(self) -> Path:
        """Give what was made a name that shows, since its own is not to be had; the new path."""
        return _show(self.path)

    def remove(self) -> None:
        """Remove what is still here under its hidden name, but not what was set aside, and unlock all."""
        shutil.rmtree(self.path, ignore_errors=True)
        while self._locks:
            os.close(self._locks.pop())


def _show(folder: Path) -> Path:
    return folder.rename(folder.with_name(folder.name.removeprefix(".")))


def remove_left(output: Path) -> None:
    """Remove the temporary folders that killed runs of this output left; those of living ones stay.

    Where a run was killed between its two moves, the earlier result gets its name back.

    Args:
        output: absolute, in a folder that exists.
    """
    form = re.compile(rf"\.{re.escape(output.name)}\.{_MARK}-[a-z0-9_]{{8}}({re.escape(_ASIDE)})?")
    names = [name for name in os.listdir(output.parent) if form.fullmatch(name)]
    for name in sorted(names, key=lambda name: (not name.endswith(_ASIDE), name)):
        folder = output.with_name(name)
        held = _lock(folder, wait=False)
        if not held:
            continue
        if name.endswith(_ASIDE) and not output.exists() and folder.with_suffix("").is_dir():
            folder.rename(output)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(held.pop())


def _lock(folder: Path, wait: bool) -> list[int] | None:
    """The file descriptor that locks a folder while it is open; none of them where the file system has no such locks.

    None where another process has the lock, or removed the folder.
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None if not folder.is_dir() else []
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(opened)
        return None
    except OSError:
        os.close(opened)
        return []
    if not folder.is_dir():
        os.close(opened)
        return None
    return [opened]
