"""The methods that are compared, by name. Nothing heavy is imported: the command names them in its help."""

from __future__ import annotations

from typing import Any

METHODS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "ours": ("hf-mamba-prune: Fisher, global, distilled", dict(score="fisher"), True),
    "paper": ("gradient-magnitude, global, task loss (2505.08299)", dict(score="gradient-magnitude"), False),
    "magnitude": ("magnitude, uniform, task loss", dict(score="magnitude", allocation="uniform"), False),
}
"""Name -> how a table calls it, the fields of its config, and whether the dense model teaches."""
