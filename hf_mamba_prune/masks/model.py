"""Scores of a model's weights, its masks within a budget, and its zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.allocations import ScoresOf
from hf_mamba_prune.masks.budget import Budget
from hf_mamba_prune.masks.calibration import Statistics, TargetStatistics
from hf_mamba_prune.masks.scores import Score
from hf_mamba_prune.masks.slots import Slot
from hf_mamba_prune.masks.tensor import MaskOf, target_mask
from hf_mamba_prune.models.shards import WHOLE, Shard
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.progress import track

_SMALLEST = 2.0**-149
"""The smallest positive float32."""


def scores_of_model(model: PreTrainedModel, score: Score, statistics: Statistics) -> ScoresOf:
    """Scores of a model's weights as they are at the call: of each slot in turn, one target in memory at a time."""

    def scores_of(slots: Sequence[Slot]) -> Iterator[torch.Tensor]:
        targets = [slot.target for slot in slots]
        weights = [target.weight(model) for target in targets]
        known = [statistics.get(target.name, TargetStatistics()) for target in targets]
        scores: Iterator[torch.Tensor] = map(score, targets, weights, known)
        return map(Slot.cut, slots, map(_above_gone, scores, weights) if score.needs else scores)

    return scores_of


def _above_gone(scores: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A live weight without a gradient scores 0, but must not tie with those that are gone: they go first."""
    return scores.masked_fill_((scores == 0) & (weight != 0), _SMALLEST)


def masks_within(budget: Budget, scores_of: ScoresOf, config: PruningConfig, shard: Shard = WHOLE) -> MaskOf:
    """The mask of each target within its budget, made when it is asked for."""

    def mask_of(target: Target) -> torch.Tensor:
        (scores,) = scores_of([Slot.whole(target)])
        return target_mask(target, scores, budget, config, shard)

    return mask_of


@torch.no_grad()
def apply_masks(model: PreTrainedModel, targets: Sequence[Target], mask_of: MaskOf) -> None:
    """Set the weights that the masks do not keep to zero."""
    for target in track(targets, "mask", "weight"):
        target.weight(model).masked_fill_(~mask_of(target), 0)
