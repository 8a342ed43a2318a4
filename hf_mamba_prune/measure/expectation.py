"""What a size may cost, said before the work: what the reference model lost at it, and how long a model was trained.

What pruning and rounding take away grows with the tokens that a model has seen per weight (arXiv 2411.04330 for
rounding, 2411.10272 for pruning): from 5 to 44 of them the loss of 50 % zeros grows five times, that of 3.25 bits
twice (`benchmarks/tokens_per_parameter.py`). The reference's losses are no promise to a model that was trained longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from hf_mamba_prune.config import PruningConfig

REFERENCE = "mamba-wiki-4m"
REFERENCE_TOKENS = 15.6
"""Tokens per weight that it has seen."""

_METHOD = ("score", "allocation", "reconstruct", "components", "component_sparsity", "pattern", "steps", "schedule")
"""What must be as it is by default for zeros to cost what they cost the reference model."""

BITS = {4.25: 1.002, 3.25: 1.016, 2.75: 1.030, 2.5: 1.047, 2.25: 1.082, 2.1: 1.102, 1.5: 1.313}
ZEROS = {0.5: 1.038, 0.6: 1.082, 0.7: 1.157, 0.8: 1.326}
"""x dense perplexity of the reference model on WikiText-103's raw test text by bits and by zeros, one-shot, with the
defaults, as `benchmarks/few_bits.py` and `one_shot.py` measure it."""

_LONGER = 2.0
"""A model that has seen so many times the reference's tokens per weight is said to lose more."""

_BILLIONS = {
    "state-spaces/mamba-2.8b-slimpj": 600,
    "state-spaces/mamba-": 300,
    "state-spaces/mamba2-": 300,
    "nvidia/mamba2-8b-3t": 3_500,
    "tiiuae/falcon-mamba-7b": 5_500,
}
"""Tokens of published trainings, as their cards state them, by how the ids begin."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What is known before the work.

    Args:
        ratio: x dense perplexity that the reference model came to by the same method; None: none was measured.
        tokens: per weight that this model has seen; None: it is not known.
    """

    ratio: float | None
    tokens: float | None

    @property
    def longer(self) -> bool:
        """Whether the model was trained so much longer than the reference that it must be expected to lose more."""
        return self.tokens is not None and self.tokens > _LONGER * REFERENCE_TOKENS


def expect(source: str, weights: int, config: PruningConfig, gradual: bool = False) -> Expectation:
    """What a model may lose.

    Args:
        source: its Hub id, or a folder.
        weights: of it.
        config: how it is pruned or rounded.
        gradual: while it is trained.
    """
    ratio = None
    if config.bits is not None and config.zeros:
        ratio = _between(BITS, config.bits)
    elif not config.rounds and not gradual:
        plain = PruningConfig(sparsity=config.sparsity)
        if all(getattr(config, name) == getattr(plain, name) for name in _METHOD):
            ratio = _between(ZEROS, config.sparsity)
    return Expectation(ratio=ratio, tokens=trained_tokens(source, weights))


def trained_tokens(source: str, weights: int) -> float | None:
    """Tokens per weight that a published model has seen; None: it is not known."""
    if source.rstrip("/").rpartition("/")[2] == REFERENCE:
        return REFERENCE_TOKENS
    found = next((billions for start, billions in _BILLIONS.items() if source.startswith(start)), None)
    return None if found is None else found * 1e9 / weights


def _between(measured: Mapping[float, float], size: float) -> float | None:
    """On straight lines through the logarithms; None beyond what was measured."""
    for low, high in pairwise(sorted(measured)):
        if low <= size <= high:
            share = (size - low) / (high - low)
            return math.exp((1 - share) * math.log(measured[low]) + share * math.log(measured[high]))
    return None
