"""The kernels under a model for as long as it lives, and under its copies."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

from hf_mamba_prune.native.plug import fitting, put_in, take_out
from hf_mamba_prune.native.step_threads import watch_steps


def keep_native(model: Any) -> None:
    """As `use_native`, for as long as the model or a copy of it lives."""
    watch_steps(model)
    model.native_kernels = _Lasting(fitting(model))


class _Lasting:
    """Puts the kernels in until it is gone; what it is an attribute of may be copied and pickled."""

    def __init__(self, paths: list[str]):
        self._paths = paths
        for path in paths:
            importlib.import_module(path)
            put_in(path)
        weakref.finalize(self, take_out, paths)

    def __reduce__(self) -> tuple:
        return _Lasting, (self._paths,)
