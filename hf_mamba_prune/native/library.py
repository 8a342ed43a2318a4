"""The compiled kernels: whether they are there, which instruction set runs, and how tensors are handed over."""

import importlib
import logging
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)

_kernels: Any = None
_failure = ""  # what came of loading the kernels that lie beside this file
try:
    _kernels = importlib.import_module("hf_mamba_prune.native._kernels")
except ImportError as error:  # the pure-torch twins run
    _failure = str(error)

NATIVE_VARIABLE = "HF_MAMBA_PRUNE_NATIVE"
ISA_VARIABLE = "HF_MAMBA_PRUNE_ISA"

CODES: dict[torch.dtype, int] = {}
"""What the kernels call the types of values; empty where they are not built."""
CODINGS: dict[str, int] = {}
"""The same by name, with codings that are no type of torch's."""

MAX_BATCH, READABLE_BYTES = 8, 64
"""Vectors that one call multiplies, and bytes that the kernels may read behind the last value of a matrix. The twins,
where no kernels are built, keep to the same."""

if _kernels is not None:
    CODINGS = dict(_kernels.CODINGS)
    CODES = {getattr(torch, name): CODINGS[name] for name in _kernels.TYPES}
    MAX_BATCH, READABLE_BYTES = _kernels.MAX_BATCH, _kernels.READABLE_BYTES

_HERE = Path(__file__).parent

_forced: list[str] = []
_told: list[bool] = []


def built() -> bool:
    """Whether the kernels were compiled when the package was installed."""
    return _kernels is not None


def why_missing() -> str | None:
    """Why there are no kernels, and what to do, in one sentence; None where they are built."""
    if built():
        return None
    there = sorted(path.name for path in _HERE.glob("_kernels.*") if path.suffix in (".so", ".pyd"))
    if not there:
        reason = "they were not built when hf-mamba-prune was installed"
    elif not {f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES} & set(there):
        reason = f"{', '.join(there)} was built for another Python than this, {sys.implementation.cache_tag}"
    else:
        reason = f"{', '.join(there)} cannot be loaded: {_failure}"
    return (
        f"the native kernels are missing, and plain torch, slower on a CPU, runs instead: {reason}; install the "
        "package again where there is a C++ compiler (`pip install --force-reinstall --no-cache-dir`, or "
        "`make setup` in a checkout)"
    )


def tell_if_missing() -> None:
    """Logs once why the kernels are not there, where somebody would have used them and did not switch them off."""
    if enabled() and not built() and not _told:
        _told.append(True)
        _log.warning(why_missing())


def enabled() -> bool:
    """Whether the environment leaves the kernels on (`HF_MAMBA_PRUNE_NATIVE`, on unless it is 0, off, no or false)."""
    return os.environ.get(NATIVE_VARIABLE, "1").strip().lower() not in ("0", "off", "no", "false")


def available() -> bool:
    """Whether the native kernels run; otherwise the pure-torch twins do."""
    return built() and enabled()


def instruction_sets() -> list[str]:
    """The instruction sets of this build that this machine runs, best first; empty without the library."""
    return _kernels.instruction_sets() if built() else []


def active_instruction_set() -> str:
    """The instruction set in use, or `"none"` when the twins run.

    Raises:
        ValueError: `HF_MAMBA_PRUNE_ISA` names a set that this build or machine does not have.
    """
    if not available():
        return "none"
    if _forced:
        return _forced[-1]
    wanted = os.environ.get(ISA_VARIABLE, "").strip().lower()
    return _checked(wanted, ISA_VARIABLE) if wanted else instruction_sets()[0]


def _checked(name: str, source: str) -> str:
    if name not in instruction_sets():
        raise ValueError(
            f"{source}={name!r}: this build and machine have {', '.join(instruction_sets()) or 'no native kernels'}; "
            "name one of them or leave it out"
        )
    return name


class force_instruction_set:
    """Context manager: run the kernels of one instruction set, over the environment's choice.

    Args:
        name: one of `instruction_sets()`.

    Raises:
        ValueError: this build or machine does not have it.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name, "instruction set")

    def __enter__(self) -> "force_instruction_set":
        _forced.append(self.name)
        return self

    def __exit__(self, *exception: object) -> None:
        _forced.pop()


def info() -> dict[str, Any]:
    """What is built and what runs, for `hf-mamba-prune info`."""
    return {
        "built": built(),
        "enabled": enabled(),
        "available": available(),
        "instruction_set": active_instruction_set(),
        "instruction_sets": instruction_sets(),
        "threads": torch.get_num_threads(),
    } | ({} if built() else {"missing": why_missing()})


def kernels() -> Any:
    """The compiled module; call only when `available()`."""
    return _kernels


def strided(tensor: torch.Tensor | None) -> Any:
    """Hands over a (b, l, channels) tensor of any strides; None stays None."""
    if tensor is None:
        return None
    return _kernels.Strided(
        address=tensor.data_ptr(), coding=CODES[tensor.dtype], shape=tensor.shape, strides=tensor.stride()
    )


def buffer(tensor: torch.Tensor | None) -> Any:
    """Hands over the memory of a contiguous tensor, with its size; None stays None."""
    return None if tensor is None else _kernels.Buffer(address=tensor.data_ptr(), bytes=tensor.nbytes)
