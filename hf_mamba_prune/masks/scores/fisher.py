"""Diagonal empirical Fisher information."""

from __future__ import annotations

import torch

from hf_mamba_prune.masks.calibration import Need, TargetStatistics
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.models.targets import Target


class Fisher(Score):
    """w^2 * E[g^2], g the gradient of one sequence: to second order the loss's rise, comparable across tensors."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.GRADIENT_SQUARE})

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        mean = statistics.mean_over_sequences(Need.GRADIENT_SQUARE)
        # Squares of small gradients times squares of small weights fall below float32's range: scale the mean first,
        # by one power of two for all targets, which changes no ranking.
        return weight.float().square() * (mean * 2.0**40)
