"""Optimal Brain Surgeon (Hassibi & Stork 1993), layer by layer as in SparseGPT (arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_mamba_prune.masks.calibration import Need, TargetStatistics
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.models.targets import Target


@dataclass(frozen=True, kw_only=True)
class Obs(Score):
    """w_ij^2 / [H^-1]_jj with H = E[x x^T]: the error of the layer's output when the weight goes and all others of its
    row adjust. Says nothing of what the loss makes of that error, so a global ranking compares unlike things.

    Args:
        damping: added to the diagonal of H, as a share of its mean, 0 or more; a singular H needs some.
    """

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.INPUT_PRODUCT})

    damping: float = 0.01

    def __call__(self, target: Target, weight: torch.Tensor, statistics: TargetStatistics) -> torch.Tensor:
        hessian = statistics.mean_over_tokens(Need.INPUT_PRODUCT).to(weight.device, torch.float64)
        mean = hessian.diagonal().mean()
        hessian.diagonal().add_(self.damping * mean if mean > 0 else 1.0)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        alone = 1 / torch.cholesky_inverse(factor).diagonal()  # what of an input the others cannot stand in for
        if failed or not (alone > 1e-12 * mean).all():
            raise ValueError(
                f"the inputs of {target.name} are linearly dependent: raise --damping above {self.damping}."
            )
        # One power of two for all targets changes no ranking and keeps small squares within float32's range.
        return (weight.double().square() * alone * 2.0**40).float()
