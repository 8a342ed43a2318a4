"""Save a pruned model as an ordinary transformers checkpoint, all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.interrupts import Interrupts
from hf_mamba_prune.files.products import foreign_files, named
from hf_mamba_prune.files.temporary import Temporary, remove_left
from hf_mamba_prune.report import REPORT_NAME


def check_output(folder: Path, overwrite: bool, mark: str = REPORT_NAME) -> None:
    """Refuse an output folder early, before any work is done.

    Args:
        folder: to be written.
        overwrite: whether an earlier result may be replaced.
        mark: the file that an earlier result holds.

    Raises:
        ValueError: it holds something and `overwrite` is off, or it holds something that is not of a result of ours.
        RuntimeError: it cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"the output {folder} exists and is not a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ValueError(f"the output folder {folder} is not empty: choose another one, or pass --overwrite.")
        if not (folder / mark).is_file():
            raise ValueError(f"{folder} holds no {mark}, so it is not a result of this tool: not overwritten.")
        if foreign := foreign_files(folder):
            raise ValueError(
                f"{folder} holds what this tool did not write ({named(foreign)}), and overwriting would delete it: "
                "move that elsewhere, or choose another folder."
            )
    if os.path.ismount(folder):
        raise ValueError(
            f"the output folder {folder} is a mount point, a container's volume perhaps, which a result cannot "
            f"replace in one move: write into a folder inside it, such as {folder / 'model'}."
        )
    parent = _existing_parent(folder)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RuntimeError(f"the output folder {folder} cannot be written: no permission in {parent}.")


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def whole_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well, and vanishes otherwise.

    What stood there before, if it is all of a result of ours, is moved aside first and removed last, so that a kill at
    any moment leaves the old result or the new one. Two processes never write into one folder: the second to finish
    finds it taken, and keeps what it made under another name. What a killed run of the same folder left beside it is
    removed.

    Raises:
        ValueError: somebody else filled the folder in the meantime.
        RuntimeError: it cannot be replaced.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary: Temporary | None = None
    with Interrupts() as interrupts:
        try:
            remove_left(folder)
            temporary = Temporary(folder)
            interrupts.release()
            yield temporary.path
            interrupts.held = True
            _open_to_others(temporary.path)
            _publish(temporary, folder, overwrite)
        finally:
            interrupts.held = True
            if temporary is not None:
                temporary.remove()


@contextmanager
def amended(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files take the place of those in `folder` when the block ends well, each as a whole."""
    temporary: Temporary | None = None
    with Interrupts() as interrupts:
        try:
            temporary = Temporary(folder.absolute())
            interrupts.release()
            yield temporary.path
            interrupts.held = True
            _open_to_others(temporary.path)
            for path in temporary.path.iterdir():
                path.replace(folder / path.name)
        finally:
            interrupts.held = True
            if temporary is not None:
                temporary.remove()


def _publish(temporary: Temporary, folder: Path, overwrite: bool) -> None:
    """Give a finished folder its name; where that fails it gets another one, and what stood there stays."""
    foreign: list[str] = []
    try:
        if overwrite and folder.exists():
            temporary.set_aside(folder)
            foreign = foreign_files(temporary.aside)
            if foreign:
                raise OSError(errno.ENOTEMPTY, named(foreign))
        temporary.path.rename(folder)
    except OSError as error:
        where = f"the result is in {temporary.keep()}"
        if temporary.aside.exists() and (earlier := temporary.put_back(folder)) != folder:
            where += f", the earlier one in {earlier}"
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            what = f" ({named(foreign)})" if foreign else ""
            raise ValueError(
                f"the output folder {folder} was filled by somebody else meanwhile{what}: {where}."
            ) from error
        raise RuntimeError(f"the output folder {folder} cannot be replaced ({error.strerror}): {where}.") from error
    shutil.rmtree(temporary.aside, ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    """Give a temporary folder and its files the permissions that new ones of this process get."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PruningConfig,
    dtype: torch.dtype,
) -> None:
    """Write weights (literal zeros, no masks, the usual names), tokenizer and pruning config into a folder.

    Args:
        folder: exists and is empty.
        model: the pruned model.
        tokenizer: saved beside it.
        config: saved as `pruning_config.json`.
        dtype: of the weights on disk.
    """
    # One copy of each: tied weights that are no longer the same tensor would both be written.
    copies = {tensor.data_ptr(): tensor.to(dtype) for tensor in model.parameters()}
    state = {name: copies[tensor.data_ptr()] for name, tensor in model.state_dict().items()}
    try:
        model.save_pretrained(folder, state_dict=state)
    except SafetensorError as error:  # a full disk, and it is no OSError
        raise RuntimeError(f"the weights cannot be written: {error}.") from error
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)


def round_to(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the weights in place to what a checkpoint of `dtype` will hold: what is evaluated is what is saved."""
    if model.dtype == dtype:
        return
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
