"""Wanda: weight times the size of its input (arXiv 2306.11695)."""

from __future__ import annotations

import torch

from hf_mamba_prune.masks.calibration import Need, TargetStatistics
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.models.targets import Target


class Wanda(Score):
    """|w_ij| * sqrt(E[x_j^2]). Meant for comparisons within a row: use it with `per-row` or `uniform`."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.INPUT_SQUARE})

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        mean = statistics.mean_over_tokens(Need.INPUT_SQUARE)
        return weight.abs().float() * mean.sqrt().to(weight.device, torch.float32)
