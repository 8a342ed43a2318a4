"""Magnitude: the weight alone."""

from __future__ import annotations

import torch

from hf_mamba_prune.architectures import Target
from hf_mamba_prune.calibration import TargetStatistics
from hf_mamba_prune.scores.base import Score


class Magnitude(Score):
    """|w|. Needs no data; tensors of small scale lose most under a global ranking."""

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics | None) -> torch.Tensor:
        return weight.abs().float()
