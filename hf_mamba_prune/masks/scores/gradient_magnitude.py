"""Gradient-aware magnitude, the score of arXiv 2505.08299."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_mamba_prune.masks.calibration import Need, TargetStatistics
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.models.targets import Target


@dataclass(frozen=True, kw_only=True)
class GradientMagnitude(Score):
    """|w| * |dL/dw|^alpha, to first order the change of the loss when the weight goes: comparable across tensors.

    Args:
        alpha: weight of the gradient; 0 is plain magnitude.
        gradient: `absolute` averages |dL/dw| over sequences; `signed` takes the absolute value of the averaged
            gradient, where sequences that pull in opposite directions cancel. Both are free of the batch size.
    """

    alpha: float = 1.0
    gradient: str = "absolute"

    @property
    def needs(self) -> frozenset[Need]:
        if self.alpha == 0:
            return frozenset()
        return frozenset({Need.GRADIENT_ABSOLUTE if self.gradient == "absolute" else Need.GRADIENT_SUM})

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        if self.alpha == 0:
            return weight.abs().float()
        (need,) = self.needs
        gradient = statistics.mean_over_sequences(need).abs()
        return weight.abs().float() * gradient.pow(self.alpha)
