"""Checkpoints of a training: written whole or not at all, and the newest whole one to go on from."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME

_FORM = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "_unfinished"
"""Where a checkpoint is written, in the folder that will hold it. The Trainer pushes no names of this form."""

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


def newest_whole(run: Path) -> tuple[Path, dict[Path, str]]:
    """The newest checkpoint that a training can go on from, and what is wrong with those after it.

    Args:
        run: folder of the run.

    Raises:
        ValueError: there is none.
    """
    found = {int(form[1]): path for path in run.glob("checkpoint-*") if (form := _FORM.fullmatch(path.name))}
    skipped: dict[Path, str] = {}
    for _, path in sorted(found.items(), reverse=True):
        wrong = fault(path)
        if wrong is None:
            return path, skipped
        skipped[path] = wrong
    faults = "; ".join(f"{path.name}: {wrong}" for path, wrong in skipped.items()) or "it holds none"
    raise ValueError(f"{run} holds no checkpoint to go on from ({faults}): train from the beginning.")


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
