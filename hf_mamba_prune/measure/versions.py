"""Versions of what a run depends on, read from the installation: nothing is imported for it."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    "hf-mamba-prune", "torch", "transformers", "accelerate", "huggingface_hub", "datasets", "evaluate", "lm-eval"
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def version(name: str = "hf-mamba-prune") -> str:
    """Of one installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # this package itself, when it runs from a checkout
        return "not installed"
