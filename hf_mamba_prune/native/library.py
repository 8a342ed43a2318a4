"""The compiled kernels: whether they are there, which instruction set runs, and how tensors are handed over."""

import importlib
import os
from typing import Any

import torch

_kernels: Any
try:
    _kernels = importlib.import_module("hf_mamba_prune.native._kernels")
except ImportError:  # no compiler when the package was installed: the pure-torch twins run
    _kernels = None

NATIVE_VARIABLE = "HF_MAMBA_PRUNE_NATIVE"
ISA_VARIABLE = "HF_MAMBA_PRUNE_ISA"

CODES: dict[torch.dtype, int] = {}
"""What the kernels call the types of values; empty where they are not built."""

MAX_BATCH, READABLE_BYTES = 8, 64
"""Vectors that one call multiplies, and bytes that the kernels may read behind the last value of a matrix. The twins,
where no kernels are built, keep to the same."""

if _kernels is not None:
    CODES = {getattr(torch, name): code for name, code in _kernels.CODINGS.items()}
    MAX_BATCH, READABLE_BYTES = _kernels.MAX_BATCH, _kernels.READABLE_BYTES

_forced: list[str] = []


def built() -> bool:
    """Whether the kernels were compiled when the package was installed."""
    return _kernels is not None


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

    def __init__(self, name: str):
        self.name = _checked(name, "instruction set")

    def __enter__(self):
        _forced.append(self.name)
        return self

    def __exit__(self, *exception):
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
    }


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
