"""What every score promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from hf_mamba_prune.masks.calibration import Need, TargetStatistics
from hf_mamba_prune.models.targets import Target


class Score(ABC):
    """Importance of every weight of a target: higher = keep.

    Scores are float32, finite, not negative, of the weight's shape (out, in), and 0 where the weight is 0 already, so
    that weights that are gone stay gone. They may be compared within one tensor; what a comparison across tensors is
    worth depends on the score and is said in its docstring.
    """

    @property
    def needs(self) -> frozenset[Need]:
        """What the calibration must measure; empty: nothing."""
        return frozenset()

    @abstractmethod
    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        """Score one target.

        Args:
            target: the table's entry for the weight.
            weight: (out, in), any floating dtype.
            statistics: what the calibration measured for it; empty for scores without `needs`.
        """
