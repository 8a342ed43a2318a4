"""Magnitude: the weight alone."""

from __future__ import annotations

import torch

from hf_mamba_prune.masks.calibration import TargetStatistics
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.models.targets import Target


class Magnitude(Score):
    """|w|. Needs no data; tensors of small scale lose most under a global ranking."""

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        return weight.abs().float()
