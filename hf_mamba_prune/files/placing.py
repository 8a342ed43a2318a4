"""Names of dtypes and devices, as a user gives them -> torch's own, or a refusal before anything is loaded."""

from __future__ import annotations

import torch

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_dtype(name: str) -> torch.dtype | None:
    """The dtype of a name, None for `auto`.

    Raises:
        ValueError: another name.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def find_device(name: str) -> torch.device:
    """The device of a name: CUDA for `auto` where there is one, otherwise the CPU.

    Raises:
        ValueError: no device, or none that torch can use here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}; expected auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch sees no CUDA device here.")
    if device.type == "meta":
        raise ValueError(f"device is {name!r}, which holds no weights; expected auto, cpu or cuda.")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's ways to say that it has none
        reason = str(error).split(".")[0].splitlines()[0]
        raise ValueError(f"device is {name!r}, which torch cannot use here ({reason}): choose auto or cpu.") from error
    return device
