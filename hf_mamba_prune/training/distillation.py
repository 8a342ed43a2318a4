"""Learn from the dense model: cross-entropy, Kullback-Leibler divergence and SquareHead (arXiv 2310.06927), summed."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.repair.divergence import divergence


def distill(
    loss: torch.Tensor | None,
    student: tuple[torch.Tensor, tuple[torch.Tensor, ...]],
    teacher: tuple[torch.Tensor, tuple[torch.Tensor, ...]],
    labels: torch.Tensor,
    config: PruningConfig,
    count: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """ce_weight * cross-entropy + kl_weight * T^2 KL(teacher || student) + hidden_weight * SquareHead.

    Args:
        loss: the cross-entropy, a scalar; None when its weight is 0.
        student, teacher: logits (b, l, vocabulary) and hidden states (b, l, d_model) of every block.
        labels: (b, l), -100 where a token does not count; a token is predicted by the position before it.
        config: weights and temperature.
        count: what the summed divergence is divided by; None: the number of labels of this batch. With gradient
            accumulation it is the count of all its batches.

    Returns:
        A scalar with gradients to the student only.
    """
    counts = labels[:, 1:].ne(-100)
    count = counts.sum().clamp_min(1) if count is None else count
    total = student[0].new_zeros((), dtype=torch.float32)
    if config.ce_weight and loss is not None:
        total = total + config.ce_weight * loss
    if config.kl_weight:
        rows = student[0].flatten(0, 1), teacher[0].flatten(0, 1)
        own = F.pad(counts, (0, 1), value=False).flatten()  # the last position predicts nothing
        total = total + config.kl_weight * divergence(*rows, config.temperature, own) / count
    if config.hidden_weight:
        share = counts.sum() / count
        total = total + config.hidden_weight * share * square_head(student[1], teacher[1], labels)
    return total


def distill_head(
    loss: torch.Tensor | None, student: ModelOutput, teacher: ModelOutput, config: PruningConfig
) -> torch.Tensor:
    """The same for a model of `heads.py`: KL of the classes, or the squared difference of the forecasts, as a mean.

    Args:
        loss: that of the labels; None when its weight is 0.
        student, teacher: outputs with `logits` (b, classes) or `prediction_outputs` (b, l, channels).
        config: weights and temperature.

    Raises:
        ValueError: `hidden_weight` is above 0, which is for language models.
    """
    if config.hidden_weight:
        raise ValueError("hidden_weight compares the tokens of language models: set it to 0 for this model.")
    if "logits" in student:
        taught = divergence(student["logits"], teacher["logits"], config.temperature) / len(student["logits"])
    else:
        taught = F.mse_loss(student["prediction_outputs"], teacher["prediction_outputs"].detach())
    total = config.kl_weight * taught
    return total + config.ce_weight * loss if config.ce_weight and loss is not None else total


def square_head(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], labels: torch.Tensor
) -> torch.Tensor:
    """Squared difference of the hidden states over the squared teacher's, mean over blocks.

    Args:
        student, teacher: hidden states (b, l, d_model), one for each block.
        labels: (b, l); positions that are -100 do not count.
    """
    seen = labels.ne(-100)[..., None]
    ratios = []
    for own, wanted in zip(student, teacher, strict=True):
        wanted = wanted.detach().float()
        difference = ((own.float() - wanted) * seen).square().sum()
        ratios.append(difference / (wanted * seen).square().sum().clamp_min(1e-12))
    return torch.stack(ratios).mean()
