"""What transformers' registries know of this package, told to them when they are imported and not before.

`import hf_mamba_prune` must cost little, and `hf-mamba-prune --help` must not import transformers at all; but whoever
imports both, in whichever order, finds the task heads and the packed form in transformers' auto classes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_TOLD = {
    "transformers.models.auto.modeling_auto": ("hf_mamba_prune.models.head_registry", "register_heads"),
    "transformers.quantizers.auto": ("hf_mamba_prune.packed.quantizer", "register"),
}
"""Module of transformers with a registry -> the function of this package that is called with it.

It runs while other modules of transformers may be half imported, so it must not import any.
"""


def _tell(registry: str) -> None:
    module, function = _TOLD[registry]
    getattr(importlib.import_module(module), function)(sys.modules[registry])


class _Watch(MetaPathFinder):
    """Finds the modules with registries as Python would, and lets this package register once they are executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _TOLD:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _tell(fullname)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_when_needed() -> None:
    """Register with what is imported already, and with the rest as soon as it is."""
    sys.meta_path.insert(0, _Watch())
    for registry in _TOLD:
        if registry in sys.modules:
            _tell(registry)
