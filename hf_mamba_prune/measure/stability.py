"""How long does the recurrence remember? h_t = exp(dt A) h_(t-1) + ...: the decay of every state, measured on data.

|exp(dt A)| is below 1 for every value of the weights, because A = -exp(A_log) and dt > 0: pruning cannot make the
recurrence diverge. It can move the decay, so the largest one of each block is reported, and the mean.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_mamba_prune.masks.calibration import evaluation_mode, observe
from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.components import Recurrence
from hf_mamba_prune.models.model_config import config_of
from hf_mamba_prune.models.targets import block_prefix


@dataclass(frozen=True, kw_only=True)
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
def measure_decay(model: PreTrainedModel, sequences: torch.Tensor) -> tuple[Decay, ...]:
    """The decay of every block on these sequences.

    Args:
        model: of a supported type, left as it was.
        sequences: token ids (samples, l); run one by one.
    """
    watchers: dict[int, _Watcher] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for layer, block in enumerate(architecture_of(config_of(model)).blocks(config_of(model))):
            if block.recurrence is None:
                continue
            prefix = block_prefix(model, layer)
            watchers[layer] = _Watcher(model, prefix, block.recurrence)
            tap = block.recurrence.tap(config_of(model))
            stack.enter_context(observe(model, replace(tap, module=prefix + tap.module), watchers[layer]))
        for ids in sequences.to(model.device).split(1):
            model.base_model(input_ids=ids, use_cache=False)
    return tuple(
        Decay(layer=layer, largest=own.largest, mean=own.total / own.count) for layer, own in watchers.items()
    )


class _Watcher:
    """Adds up the decays of one block."""

    def __init__(self, model: PreTrainedModel, prefix: str, recurrence: Recurrence) -> None:
        weight = recurrence.weight
        self._weight = None if weight is None else model.get_parameter(prefix + weight)
        self._bias = model.get_parameter(prefix + recurrence.bias)
        self._limit = (0.0, math.inf) if recurrence.limit is None else getattr(model.config, recurrence.limit)
        rates = model.get_parameter(prefix + recurrence.rates).detach().double().exp()
        self._rates = rates.view(len(rates), -1)  # (channels or heads, states)
        self.largest, self.total, self.count = 0.0, 0.0, 0

    def __call__(self, observed: torch.Tensor) -> None:
        x = observed if self._weight is None else observed @ self._weight.T
        dt = F.softplus(x.double() + self._bias.double()).clamp(*self._limit).flatten(0, 1)
        self.largest = max(self.largest, float(torch.exp(-dt.amin(0) * self._rates.amin(1)).max()))
        for rate in self._rates.unbind(1):  # one state at a time: all of them would not fit for a long sequence
            self.total += float(torch.exp(-dt * rate).sum())
            self.count += dt.numel()
