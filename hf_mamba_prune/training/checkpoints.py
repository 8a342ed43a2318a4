"""Checkpoints of a training: written whole or not at all, and the newest whole one to go on from."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

_FORM = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "_unfinished"
"""Where a checkpoint is written, in the folder that will hold it. The Trainer pushes no names of this form."""

_BROKEN = "_broken-"
"""Before the name of a checkpoint that a killed run left; the Trainer resumes from no such name, and pushes none."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*", "adapter_model.*")


def unfinished(run: Path) -> Path:
    """The folder within a run's in which its next checkpoint is written."""
    return run / _UNFINISHED


def finish(run: Path, name: str) -> Path:
    """Give a checkpoint that is written its place in the run's folder; an earlier one of its name goes.

    Args:
        run: folder of the run.
        name: of the checkpoint, such as `checkpoint-500`.
    """
    place, earlier = run / name, unfinished(run) / "earlier"
    if place.is_dir():
        place.rename(earlier)
    (unfinished(run) / name).rename(place)
    shutil.rmtree(unfinished(run))
    return place


def fault(checkpoint: Path) -> str | None:
    """What is missing or cut short in a checkpoint, so that no training can go on from it; None where it is whole."""
    state = checkpoint / TRAINER_STATE_NAME  # written last
    if not state.is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return f"{TRAINER_STATE_NAME} is cut short"
    if not any(any(checkpoint.glob(form)) for form in _WEIGHTS):
        return "it holds no weights"
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return f"{path.name} is cut short"
    pickles = (path for form in ("*.pt", "*.pth", "*.bin") for path in sorted(checkpoint.glob(form)))
    return next((f"{path.name} is cut short" for path in pickles if not zipfile.is_zipfile(path)), None)


def _newest_first(run: Path) -> list[Path]:
    found = {int(form[1]): path for path in run.glob("checkpoint-*") if (form := _FORM.fullmatch(path.name))}
    return [path for _, path in sorted(found.items(), reverse=True)]


def newest_whole(run: Path) -> tuple[Path, dict[Path, str]]:
    """The newest checkpoint that a training can go on from, and what is wrong with those after it.

    Args:
        run: folder of the run.

    Raises:
        ValueError: there is none.
    """
    skipped: dict[Path, str] = {}
    for path in _newest_first(run):
        wrong = fault(path)
        if wrong is None:
            return path, skipped
        skipped[path] = wrong
    faults = "; ".join(f"{path.name}: {wrong}" for path, wrong in skipped.items()) or "it holds none"
    raise ValueError(f"{run} holds no checkpoint to go on from ({faults}): train from the beginning.")


class RunLock:
    """Says to other processes that a training writes into a folder; the system opens it when the process dies.

    Args:
        run: folder of the run, which exists.
    """

    def __init__(self, run: Path) -> None:
        self._opened = os.open(run, os.O_RDONLY | os.O_DIRECTORY)

    def take(self, alone: bool = False) -> bool:
        """Lock it, or say that it cannot be: another process has the lock, or the file system has none.

        Args:
            alone: against all; else only against those that want to be alone, as many ranks write one run.
        """
        try:
            fcntl.flock(self._opened, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Unlock it."""
        os.close(self._opened)


def set_broken_aside(run: Path) -> dict[Path, str]:
    """Give the checkpoints after the newest whole one, which a killed run left, names that nothing resumes from.

    Nothing is done while another process trains in the folder.

    Args:
        run: folder of the run, perhaps not there yet.

    Returns:
        What is wrong with each, by its new place.
    """
    if not run.is_dir():
        return {}
    lock, moved = RunLock(run), dict[Path, str]()
    if lock.take(alone=True):
        for path in _newest_first(run):
            wrong = fault(path)
            if wrong is None:
                break
            aside = path.with_name(_BROKEN + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            moved[path.rename(aside)] = wrong
    lock.close()
    return moved


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint that was cut short.

    Raises:
        ValueError: it was; names one beside it that is whole.
    """
    wrong = fault(checkpoint) if _FORM.fullmatch(checkpoint.name) and checkpoint.is_dir() else None
    if wrong is None:
        return
    try:
        instead = f"go on from {newest_whole(checkpoint.parent)[0]}, or pass True for the newest whole one"
    except ValueError:
        instead = "none beside it is whole, so train from the beginning"
    raise ValueError(f"{checkpoint} is not a whole checkpoint, {wrong}: {instead}.")
