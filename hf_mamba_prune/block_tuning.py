"""A few steps of Adam on what is left of one block, towards what the dense block gives on the same inputs: no labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

_BETAS = (0.9, 0.95)
_WARM_UP = 0.1


def tune_block(
    block: nn.Module,
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    epochs: int,
    learning_rate: float,
    seed: int,
) -> tuple[float, float]:
    """Move the kept weights, norms and biases of a pruned block.

    Args:
        block: changed in place.
        inputs: batches (b, l, d_model) that the block gets in the pruned model.
        outputs: what it should give.
        masks: parameter name in the block -> True where the weight is kept, of the parameter's shape.
        epochs: how often each batch is seen.
        learning_rate: the highest; it rises for a tenth of the steps and falls to nothing as a cosine.
        seed: of the order of the batches.

    Returns:
        The mean squared error beside the mean square of what the block adds to its input, before and after.
    """
    kept = {name: p.requires_grad for name, p in block.named_parameters()}
    scale = sum(float((y - x).float().square().mean()) for x, y in zip(inputs, outputs, strict=True)) / len(inputs)
    before = _error(block, inputs, outputs) / scale
    best = {name: p.detach().clone() for name, p in block.named_parameters()}
    block.requires_grad_(True)
    optimizer = torch.optim.Adam(block.parameters(), lr=learning_rate, betas=_BETAS)
    generator, total, step = torch.Generator().manual_seed(seed), epochs * len(inputs), 0
    with torch.enable_grad():
        for _ in range(epochs):
            for i in torch.randperm(len(inputs), generator=generator).tolist():
                step += 1
                done = step / total
                rate = (
                    min(1.0, done / _WARM_UP)
                    * 0.5
                    * (1 + math.cos(math.pi * max(0.0, done - _WARM_UP) / (1 - _WARM_UP)))
                )
                optimizer.param_groups[0]["lr"] = learning_rate * rate
                optimizer.zero_grad()
                (F.mse_loss(block(inputs[i]).float(), outputs[i].float()) / scale).backward()
                for name, mask in masks.items():
                    block.get_parameter(name).grad.mul_(mask)
                optimizer.step()
    for name, p in block.named_parameters():
        p.requires_grad_(kept[name])
        p.grad = None
    after = _error(block, inputs, outputs) / scale
    if not after < before:
        for name, p in block.named_parameters():
            p.data.copy_(best[name])
        after = before
    return before, after


@torch.no_grad()
def _error(block: nn.Module, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> float:
    errors = [float(F.mse_loss(block(x).float(), y.float())) for x, y in zip(inputs, outputs, strict=True)]
    return sum(errors) / len(errors)
