"""The compiled kernels: whether they are there, which instruction set runs, and how tensors are handed over."""

import os

import torch

try:
    from hf_mamba_prune.native import _kernels
except ImportError:  # no compiler when the package was installed: the pure-torch twins run
    _kernels = None

NATIVE_VARIABLE = "HF_MAMBA_PRUNE_NATIVE"
ISA_VARIABLE = "HF_MAMBA_PRUNE_ISA"

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

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


def info() -> dict:
    """What is built and what runs, for `hf-mamba-prune info`."""
    return {
        "built": built(),
        "enabled": enabled(),
        "available": available(),
        "instruction_set": active_instruction_set(),
        "instruction_sets": instruction_sets(),
        "threads": torch.get_num_threads(),
    }


def kernels():
    """The compiled module; call only when `available()`."""
    return _kernels


def time_major(tensor: torch.Tensor | None) -> tuple | None:
    """Hands over a (b, l, channels) tensor of any strides; None stays None."""
    if tensor is None:
        return None
    return (tensor.data_ptr(), DTYPE_CODES[tensor.dtype], *tensor.stride())


def address(tensor: torch.Tensor | None) -> int | None:
    """Hands over a contiguous float32 tensor; None stays None."""
    return None if tensor is None else tensor.data_ptr()
