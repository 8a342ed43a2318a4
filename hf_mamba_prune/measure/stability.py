"""How long does the recurrence remember? h_t = exp(dt A) h_(t-1) + ...: the decay of every state, measured on data.

|exp(dt A)| is below 1 for every value of the weights, because A = -exp(A_log) and dt > 0: pruning cannot make the
recurrence diverge. It can move the decay, so the largest one of each block is reported, and the mean.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from hf_mamba_prune.masks.calibration import evaluation_mode, observe
from hf_mamba_prune.models.architectures import architecture_of


@dataclass(frozen=True)
class Decay:
    """|exp(dt A)| in one block, over all tokens, channels (or heads) and states.

    Args:
        layer: index of the block.
        largest: 0 to 1; near 1 a state remembers for about 1 / (1 - largest) tokens.
        mean: 0 to 1.
    """

    layer: int
    largest: float
    mean: float


@torch.no_grad()
def measure_decay(model: nn.Module, sequences: torch.Tensor) -> tuple[Decay, ...]:
    """The decay of every block on these sequences.

    Args:
        model: of a supported type, left as it was.
        sequences: token ids (samples, l); run one by one.
    """
    architecture = architecture_of(model.config)
    prefix = "" if model.base_model is model else model.base_model_prefix + "."
    sums = [[0.0, 0.0, 0] for _ in range(model.config.num_hidden_layers)]  # largest, sum, count
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for layer in range(len(sums)):
            block = f"{prefix}{architecture.layers}.{layer}."
            see = _Watcher(model, block, sums[layer])
            tap = architecture.time_step.tap(model.config)
            stack.enter_context(observe(model, replace(tap, module=block + tap.module), see))
        for ids in sequences.to(model.device).split(1):
            model.base_model(input_ids=ids, use_cache=False)
    return tuple(Decay(layer, largest, total / count) for layer, (largest, total, count) in enumerate(sums))


class _Watcher:
    """Adds the decays of one block to its sums."""

    def __init__(self, model: nn.Module, block: str, sums: list[float]) -> None:
        step = architecture_of(model.config).time_step
        self._weight = None if step.weight is None else model.get_parameter(block + step.weight)
        self._bias = model.get_parameter(block + step.bias)
        self._limit = (0.0, math.inf) if step.limit is None else getattr(model.config, step.limit)
        rates = model.get_parameter(block + "mixer.A_log").detach().double().exp()
        self._rates = rates.view(len(rates), -1)  # (channels or heads, states)
        self._sums = sums

    def __call__(self, observed: torch.Tensor) -> None:
        x = observed if self._weight is None else observed @ self._weight.T
        dt = F.softplus(x.double() + self._bias.double()).clamp(*self._limit).flatten(0, 1)
        self._sums[0] = max(self._sums[0], float(torch.exp(-dt.amin(0) * self._rates.amin(1)).max()))
        for rate in self._rates.unbind(1):  # one state at a time: all of them would not fit for a long sequence
            self._sums[1] += float(torch.exp(-dt * rate).sum())
            self._sums[2] += dt.numel()
