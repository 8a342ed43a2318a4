"""What pruning in training demands of a config, whatever the weights are: refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import total_to_prune
from hf_mamba_prune.masks.calibration import GRADIENT_TERMS, check_inputs
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.models.targets import Target


def check_gradual(targets: Sequence[Target], config: PruningConfig) -> None:
    """Refuse what cannot be pruned in training, whatever the weights are.

    Raises:
        ValueError: the config does not fit the model or a training.
    """
    needs = build_score(config).needs
    total_to_prune(targets, config, config.sparsity)
    check_inputs(targets, needs)
    if config.allocation == "sensitivity":
        raise ValueError("allocation 'sensitivity' needs a dense model at rest: choose another one for training.")
    if config.measure == "training" and not needs <= GRADIENT_TERMS.keys():
        raise ValueError(
            f"score {config.score!r} is not made of gradients, which a training measures: choose one that is, "
            "such as gradient-magnitude or fisher, or, in Python, measure='calibration'."
        )
    if config.regrow and (config.n_of_m is not None or config.allocation == "per-row"):
        raise ValueError("regrow exchanges weights within a whole tensor: not with a pattern or per-row.")


def check_steps(config: PruningConfig, total_steps: int) -> None:
    """Refuse a training that is too short for its pruning steps.

    Raises:
        ValueError: fewer steps in training than pruning steps, or nothing to prune.
    """
    if config.sparsity == 0:
        raise ValueError(
            "a sparsity of 0, as with bits or size, leaves nothing to prune in training: choose a higher one, or a "
            "recipe that trains afterwards, such as standard."
        )
    if (config.end - config.start) * total_steps < config.steps:
        raise ValueError(
            f"{config.steps} pruning steps do not fit between {config.start:.0%} and {config.end:.0%} of "
            f"{total_steps} training steps: train longer, or lower steps."
        )
