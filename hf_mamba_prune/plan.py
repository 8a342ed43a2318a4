"""What a run would do and about what it would cost, from the model's config alone: nothing is loaded or changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import total_to_prune
from hf_mamba_prune.masks.calibration import GRADIENT_TERMS
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.measure.environment import in_bfloat16
from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.model_config import config_of
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.texts.sequences import REPAIR_PARTS, SCORE_PARTS

_BYTES = 4
_ACTIVATIONS = 40
"""Floats that a block keeps of each token and d_inner channel for the backward pass, measured on a CPU."""
_PRODUCTS = 20
"""Products with the Hessian that the solver needs for a weight, measured."""
_PASSES = 4
"""What making such a float, and its gradient, takes beside the matrix products; times the sigmoid of one, measured."""


@dataclass(frozen=True)
class Plan:
    """What would happen.

    Args:
        weights: of the model.
        prunable: of the chosen components.
        zeros: that the masks would set.
        memory_bytes: estimate of the highest memory, in float32.
        seconds: estimate for everything but loading and evaluation.
        components: name -> weights.
    """

    weights: int
    prunable: int
    zeros: int
    memory_bytes: int
    seconds: float
    components: dict[str, int]


def make_plan(
    model: PreTrainedModel,
    config: PruningConfig,
    training_tokens: int = 0,
    batch_tokens: int = 0,
    distill: bool = False,
) -> Plan:
    """Plan a run.

    Args:
        model: may be on the meta device.
        config: how to prune.
        training_tokens: that a recovery sees in all.
        batch_tokens: that it sees in one step.
        distill: whether it has a teacher.

    Raises:
        ValueError: the config does not fit the model.
    """
    targets = find_targets(model, config.components)
    prunable = sum(target.size for target in targets)
    weights = sum(p.numel() for p in model.parameters())
    components: dict[str, int] = {}
    for target in targets:
        components[target.component] = components.get(target.component, 0) + target.size
    needs = build_score(config).needs
    sums = sum(need in GRADIENT_TERMS for need in needs)
    tokens = config.calibration_length * (1 if sums else config.batch_size)
    inner = max(
        block.d_inner(config_of(model)) for block in architecture_of(config_of(model)).blocks(config_of(model))
    )
    layers = model.config.num_hidden_layers if sums else 1
    activations = tokens * (inner * _ACTIVATIONS * layers + 3 * model.config.vocab_size)
    per_token = 2 * weights * (3 if sums else 1) if needs else 0
    operations = per_token * _tokens_seen(config, SCORE_PARTS)
    made = (1 if sums else bool(needs) / 3) * _tokens_seen(config, SCORE_PARTS)
    memory, solving = sums * prunable + (activations if needs else 0), 0
    if config.reconstruct:
        linear = [target for target in targets if target.kind == "linear" and target.layer is not None]
        # The blocks run about three times, and each input is multiplied with itself.
        per_token = sum(6 * target.size + 2 * target.shape[1] ** 2 for target in linear)
        operations += per_token * _tokens_seen(config, REPAIR_PARTS)
        made += _tokens_seen(config, REPAIR_PARTS)
        solving = config.steps * sum(2 * _PRODUCTS * target.size * target.shape[1] for target in linear)
        states = config.calibration_samples * config.calibration_length * model.config.hidden_size
        widest = max((target.shape[1] for target in linear), default=0)
        memory += sum(target.size for target in linear) + states + 10 * widest**2
    if training_tokens:
        training = weights * (3 + distill) + batch_tokens * (
            inner * _ACTIVATIONS * model.config.num_hidden_layers + 3 * model.config.vocab_size * (1 + distill)
        )
        memory = max(memory, training)
    shape = (model.config.hidden_size, 2 * inner)
    values = inner * _ACTIVATIONS * model.config.num_hidden_layers + 3 * model.config.vocab_size
    seconds = operations / _operations_per_second(shape, config.calibration_bf16)
    seconds += training_tokens * weights * (6 + 2 * distill) / _operations_per_second(shape, None)
    seconds += solving / _operations_per_second(shape, False)
    seconds += (made + training_tokens * (1 + distill / 3)) * values * _PASSES * _seconds_per_value(inner)
    return Plan(
        weights=weights,
        prunable=prunable,
        zeros=total_to_prune(targets, config, config.sparsity),
        memory_bytes=_BYTES * (weights + memory),
        seconds=seconds * 1.5,
        components=components,
    )


def _tokens_seen(config: PruningConfig, parts: int) -> float:
    """By all steps together."""
    return config.calibration_samples * config.calibration_length * config.steps / min(config.steps, parts)


def _operations_per_second(shape: tuple[int, int], bf16: bool | None) -> float:
    """What this processor does in a matrix product with a model's `in_proj`, measured in a moment."""
    dtype = torch.bfloat16 if in_bfloat16(bf16, torch.device("cpu")) else torch.float32
    left, right = torch.randn(512, shape[0]).to(dtype), torch.randn(shape).to(dtype)
    return 2 * left.numel() * shape[1] / _fastest(lambda: left @ right)


def _seconds_per_value(inner: int) -> float:
    """What this processor takes for the sigmoid of one of many values, measured in a moment."""
    values = torch.randn(512, inner)
    return _fastest(values.sigmoid_) / values.numel()


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of a run on all threads: the fastest of several on one thread, shared out.

    Where other work keeps the cores busy, the threads of so short a run wait for each other most of the time.
    """
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(9):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(found) / threads
