"""What a run would do and about what it would cost, from the model's config alone: nothing is loaded or changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import PreTrainedModel

from hf_mamba_prune.bits.sensitivity import GROUPS
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import total_to_prune
from hf_mamba_prune.masks.calibration import GRADIENT_TERMS
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.measure.environment import in_bfloat16
from hf_mamba_prune.measure.expectation import Expectation, expect
from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.model_config import ModelConfig
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.pruning import check_fit, reads_calibration
from hf_mamba_prune.repair.tuning import sequences_to_tune
from hf_mamba_prune.texts.sequences import REPAIR_PARTS, SCORE_PARTS

_BYTES = 4
_ACTIVATIONS = 40
"""Floats that a block keeps of each token and d_inner channel for the backward pass, measured on a CPU."""
_PRODUCTS = 20
"""Products with the Hessian that the solver needs for a weight, measured."""
_SWEEPS = 80
"""Products with its Hessian that rounding a weight takes, measured at mamba-130m's shape."""
_PASSES = 4
"""What making such a float, and its gradient, takes beside the matrix products; times the sigmoid of one, measured."""


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """How much a run trains.

    Args:
        steps: of the optimizer.
        batch_tokens: of one step.
        distill: with the dense model as teacher.
        gradual: while it is pruned, so that nothing is reconstructed.
    """

    steps: int
    batch_tokens: int
    distill: bool = True
    gradual: bool = False

    @property
    def tokens(self) -> int:
        """In all."""
        return self.steps * self.batch_tokens


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would happen.

    Args:
        weights: of the model.
        prunable: of the chosen components.
        zeros: that the masks would set.
        memory_bytes: estimate of the highest memory, in float32.
        seconds: estimate for everything but loading and evaluation.
        components: name -> weights.
        training_tokens: that a training sees; 0 without one.
        bits: of a projection weight that it is rounded to, scales and all; None: to no budget of bits.
        file_bytes: of the packed file that it is rounded to; None: to no size.
        code_bits: of the codes that kept weights are rounded to; None: they are not.
        expectation: what it may cost in quality.
    """

    weights: int
    prunable: int
    zeros: int
    memory_bytes: int
    seconds: float
    components: dict[str, int]
    training_tokens: int = 0
    bits: float | None = None
    file_bytes: int | None = None
    code_bits: int | None = None
    expectation: Expectation


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """Floats held beside the weights, products of the passes and of the solver, and tokens whose values are made."""

    floats: int = 0
    operations: float = 0
    solving: float = 0
    made: float = 0


def make_plan(
    model: PreTrainedModel, config: PruningConfig, training: TrainingSize | None = None, source: str = ""
) -> Plan:
    """Plan a run.

    Args:
        model: may be on the meta device.
        config: how to prune.
        training: after pruning, or while pruning; None: not at all.
        source: Hub id of the model, by which it is known how long it was trained.

    Raises:
        ValueError: the config does not fit the model.
    """
    gradual = training is not None and training.gradual
    targets = check_fit(model, config, training.steps if training is not None and gradual else None)
    weights = model.num_parameters()
    config = config.for_weights(weights)
    components: dict[str, int] = {}
    for target in targets:
        components[target.component] = components.get(target.component, 0) + target.size
    shape = cast(ModelConfig, model.config)
    inner = _d_inner(shape)
    seen = _tokens_seen(config, 1 if gradual else SCORE_PARTS)
    masks = config.sparsity > 0 or not config.rounds
    scoring = (
        _scoring(targets, config, shape, weights, seen) if masks and reads_calibration(config, gradual) else _Cost()
    )
    repairs = masks and config.reconstruct and not gradual
    repairing = _repairing(targets, config, shape, weights) if repairs else _Cost()
    rounding = _rounding(targets, config, shape, weights) if config.rounds else _Cost()
    floats = max(scoring.floats + repairing.floats, rounding.floats)
    values = inner * _ACTIVATIONS * shape.num_hidden_layers + 3 * shape.vocab_size
    made, learning = scoring.made + repairing.made + rounding.made, 0.0
    if training is not None:
        logits = 3 * shape.vocab_size * (1 + training.distill)
        held = training.batch_tokens * (inner * _ACTIVATIONS * shape.num_hidden_layers + logits)
        floats = max(floats, weights * (3 + training.distill) + held)
        made += training.tokens * (1 + training.distill / 3)
        learning = training.tokens * weights * (6 + 2 * training.distill)
    product = (shape.hidden_size, 2 * inner)
    running = scoring.operations + repairing.operations + rounding.operations
    seconds = running / _operations_per_second(product, config.calibration_bf16)
    seconds += learning / _operations_per_second(product, None)
    seconds += (repairing.solving + rounding.solving) / _operations_per_second(product, False)
    seconds += made * values * _PASSES * _seconds_per_value(inner)
    return Plan(
        weights=weights,
        prunable=sum(target.size for target in targets),
        zeros=total_to_prune(targets, config, config.sparsity),
        memory_bytes=_BYTES * (weights + floats),
        seconds=seconds * 1.5,
        components=components,
        training_tokens=0 if training is None else training.tokens,
        bits=config.bits,
        file_bytes=config.size,
        code_bits=config.code_bits,
        expectation=expect(source, weights, config, gradual),
    )


def _d_inner(shape: ModelConfig) -> int:
    """Of the widest block."""
    return max(block.d_inner(shape) for block in architecture_of(shape).blocks(shape))


def _scoring(targets: Sequence[Target], config: PruningConfig, shape: ModelConfig, weights: int, seen: float) -> _Cost:
    """Of the passes over `seen` calibration tokens that scores are measured in."""
    needs = build_score(config).needs
    if not needs:
        return _Cost()
    sums = sum(need in GRADIENT_TERMS for need in needs)
    tokens = config.calibration_length * (1 if sums else config.batch_size)
    layers = shape.num_hidden_layers if sums else 1
    return _Cost(
        floats=sums * sum(target.size for target in targets)
        + tokens * (_d_inner(shape) * _ACTIVATIONS * layers + 3 * shape.vocab_size),
        operations=2 * weights * (3 if sums else 1) * seen,
        made=seen if sums else seen / 3,
    )


def _repairing(targets: Sequence[Target], config: PruningConfig, shape: ModelConfig, weights: int) -> _Cost:
    """Of the reconstruction, block by block, and of tuning beside the dense model."""
    linear = [target for target in targets if target.kind == "linear" and target.layer is not None]
    seen = _tokens_seen(config, REPAIR_PARTS)
    states = config.calibration_samples * config.calibration_length * shape.hidden_size
    widest = max((target.shape[1] for target in linear), default=0)
    # The blocks run about three times, and each input is multiplied with itself.
    per_token = sum(6 * target.size + 4 / 3 * target.shape[1] ** 2 for target in linear)
    tuned = _tokens_tuned(config, weights)
    tuning = config.calibration_length * (
        _d_inner(shape) * _ACTIVATIONS * shape.num_hidden_layers + 3 * shape.vocab_size
    )
    repairing = sum(target.size for target in linear) + states + 10 * widest**2
    return _Cost(
        floats=weights + max(repairing, 4 * weights + tuning),
        operations=per_token * seen + 8 * weights * tuned,
        solving=config.steps * sum(2 * _PRODUCTS * target.size * target.shape[1] for target in linear),
        made=seen + 4 / 3 * tuned,
    )


def _rounding(targets: Sequence[Target], config: PruningConfig, shape: ModelConfig, weights: int) -> _Cost:
    """Of sensitivities, a pass forward and back, of rounding block by block, and of tuning beside the dense model."""
    linear = [target for target in targets if target.kind == "linear" and target.layer is not None]
    tokens = config.calibration_samples * config.calibration_length
    widest = max((target.shape[1] for target in linear), default=0)
    hessians = sum(4 / 3 * GROUPS * target.shape[1] ** 2 for target in linear)  # of mirrored parts one is made
    tuned = _tokens_tuned(config, weights)
    return _Cost(
        floats=weights
        + config.calibration_length * (_d_inner(shape) * _ACTIVATIONS * shape.num_hidden_layers)
        + 3 * config.calibration_length * shape.vocab_size
        + tokens * shape.hidden_size
        + 4 * GROUPS * widest**2,
        operations=tokens * (6 * weights + 4 * sum(target.size for target in linear) + hessians) + 8 * weights * tuned,
        solving=sum(2 * _SWEEPS * target.size * target.shape[1] for target in linear),
        made=2 * tokens + 4 / 3 * tuned,
    )


def _tokens_tuned(config: PruningConfig, weights: int) -> int:
    samples, length = config.calibration_samples, config.calibration_length
    return length * sequences_to_tune(weights, samples, length)


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
