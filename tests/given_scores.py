"""Scores that a test gives, in the form in which an allocation asks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_mamba_prune.masks.allocations import ScoresOf
from hf_mamba_prune.models.targets import Target


def given_scores(score_of: Callable[[Target], torch.Tensor]) -> ScoresOf:
    """From the scores (out, in) of a target to those of slots."""
    return lambda slots: (slot.cut(score_of(slot.target)) for slot in slots)
