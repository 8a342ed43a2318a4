"""Score, allocate and mask: from a model and what was measured of it to its zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.allocations import Curves
from hf_mamba_prune.masks.budget import Budget, allocate
from hf_mamba_prune.masks.calibration import Statistics, TargetStatistics
from hf_mamba_prune.masks.scores import Score
from hf_mamba_prune.masks.tensor import MaskOf, target_mask
from hf_mamba_prune.models.shards import WHOLE, Shard
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.progress import track

_SMALLEST = 2.0**-149
"""The smallest positive float32."""


@torch.no_grad()
def choose_masks(
    model: PreTrainedModel,
    targets: Sequence[Target],
    score: Score,
    statistics: Statistics,
    config: PruningConfig,
    sparsity: float,
    curves: Curves | None = None,
    shard: Shard = WHOLE,
) -> tuple[Budget, MaskOf]:
    """Score and allocate; the mask of each target is made when it is asked for, one target in memory at a time."""

    def score_of(target: Target) -> torch.Tensor:
        weight = target.weight(model)
        scores = score(target, weight, statistics.get(target.name, TargetStatistics()))
        if not score.needs:
            return scores
        # A live weight without a gradient scores 0, but must not tie with those that are gone: they go first.
        return scores.masked_fill_((scores == 0) & (weight != 0), _SMALLEST)

    budget = allocate(targets, score_of, config, sparsity, curves, shard)
    return budget, lambda target: target_mask(target, score_of(target), budget, config, shard)


@torch.no_grad()
def apply_masks(model: PreTrainedModel, targets: Sequence[Target], mask_of: MaskOf) -> None:
    """Set the weights that the masks do not keep to zero."""
    for target in track(targets, "mask", "weight"):
        target.weight(model).masked_fill_(~mask_of(target), 0)
