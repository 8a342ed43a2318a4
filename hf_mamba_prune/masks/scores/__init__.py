"""Which weight matters? A score is one file here, one line in `SCORES` and one row in the tests' case table."""

from __future__ import annotations

from collections.abc import Callable

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.scores.base import Score
from hf_mamba_prune.masks.scores.fisher import Fisher
from hf_mamba_prune.masks.scores.gradient_magnitude import GradientMagnitude
from hf_mamba_prune.masks.scores.magnitude import Magnitude
from hf_mamba_prune.masks.scores.obs import Obs
from hf_mamba_prune.masks.scores.random import Random
from hf_mamba_prune.masks.scores.wanda import Wanda

__all__ = ["SCORES", "Score", "build_score"]

SCORES: dict[str, Callable[[PruningConfig], Score]] = {
    "magnitude": lambda config: Magnitude(),
    "gradient-magnitude": lambda config: GradientMagnitude(alpha=config.alpha, gradient=config.gradient),
    "fisher": lambda config: Fisher(),
    "wanda": lambda config: Wanda(),
    "obs": lambda config: Obs(damping=config.damping),
    "random": lambda config: Random(seed=config.seed),
}


def build_score(config: PruningConfig) -> Score:
    """The score that a config names, with its parameters."""
    return SCORES[config.score](config)
