"""Random: the floor that every other score must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_mamba_prune.masks.calibration import TargetStatistics
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.seeds import name_seed


@dataclass(frozen=True, kw_only=True)
class Random(Score):
    """Uniform in (0, 1], the same for the same seed and name; 0 where the weight is gone already."""

    seed: int = 0

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        generator = torch.Generator().manual_seed(name_seed(target.name, self.seed))
        draw = 1 - torch.rand(weight.shape, generator=generator)
        return draw.to(weight.device) * (weight != 0)
