"""Tuning after pruning or rounding: what is left moves until the whole model predicts what the dense one did.

Least squares and rounding look at one weight after the other; what their errors make together, only the whole model
shows. All parameters but embeddings learn from the calibration text, by the divergence to the dense model, each of its
sequences seen once; masks and codes stay as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mamba_prune.masks.calibration import evaluation_mode
from hf_mamba_prune.progress import track
from hf_mamba_prune.repair.divergence import divergence
from hf_mamba_prune.seeds import name_seed

_BATCH, _WARM_UP = 4, 5
_TIMES = 8
"""So many sequences for one that scores are measured on. At 70 % zeros the perplexity on two other texts is 1.157 and
1.162 x dense from 1,024 sequences, 1.194 and 1.201 from 512, 1.218 and 1.245 from 128 that are read four times."""
_RATE, _SLOWEST, _FASTEST = 0.0045, 0.0005, 0.004
"""Of what is kept, for each root of a nat that is lost before: as far as weights are off, so far they go. Measured: at
50 % zeros and 0.08 nats 1e-3 is better than half and than twice as much, at 70 % and 0.38 nats 2e-3 is like 4e-3."""
_WORK = 2e12
"""Weights x tokens at most on a CPU, eight operations each: a model of a few million weights needs less."""
_RANDOM = 8
"""So many calibration sequences for one of random tokens. Measured where a calibration text lacks 9 % of what the
other text has: at 4.25 bits 1.021 x dense became 1.013, at 2.5 bits 1.081 became 1.074."""


def random_sequences(model: PreTrainedModel, sequences: torch.Tensor, seed: int) -> torch.Tensor:
    """Some of tokens at random: a text has only some of the vocabulary, and what it never sees would be given up."""
    generator = torch.Generator().manual_seed(name_seed("random sequences", seed))
    shape = (max(1, len(sequences) // _RANDOM), sequences.shape[1])
    return torch.randint(0, int(model.config.vocab_size), shape, generator=generator)


class Moved(ABC):
    """A parameter that follows factors, which the optimizer moves.

    Args:
        parameter: whose gradient goes over to the factors as soon as it is there, so that not all of them are held.
        factors: where they start.
    """

    rate: float

    def __init__(self, parameter: nn.Parameter, *factors: torch.Tensor) -> None:
        self.parameter, self.factors = parameter, factors
        for factor in factors:
            factor.grad = torch.zeros_like(factor)

    def watch(self) -> Callable[[], None]:
        """From now on, until what is returned is called."""
        return self.parameter.register_post_accumulate_grad_hook(self._take_gradient).remove

    def _take_gradient(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None  # torch calls this when it has just made it
        for factor, own in zip(self.factors, self._gradients(gradient.float()), strict=True):
            assert factor.grad is not None
            factor.grad += own

    @abstractmethod
    def _gradients(self, gradient: torch.Tensor) -> Sequence[torch.Tensor]:
        """Those of the factors, from that of the parameter."""

    @abstractmethod
    def show(self) -> None:
        """Into the model."""


class Free(Moved):
    """One that is held as it will be saved, and in float32 for the optimizer."""

    rate = 0.001

    def __init__(self, parameter: nn.Parameter, dtype: torch.dtype) -> None:
        super().__init__(parameter, parameter.detach().float().clone())
        self._dtype = dtype

    def _gradients(self, gradient: torch.Tensor) -> Sequence[torch.Tensor]:
        return (gradient,)

    def show(self) -> None:
        self.parameter.data.copy_(self.factors[0].to(self._dtype))


class _Kept(Free):
    """One whose zeros stay, and that learns at a rate of its own."""

    def __init__(self, parameter: nn.Parameter, dtype: torch.dtype, rate: float) -> None:
        super().__init__(parameter, dtype)
        self.rate = rate
        self._mask = parameter.detach() != 0

    def show(self) -> None:
        self.factors[0].mul_(self._mask)
        super().show()


def tune_kept(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    pruned: Sequence[str],
    sequences: torch.Tensor,
    *,
    dtype: torch.dtype,
    seed: int,
    bf16: bool = False,
) -> None:
    """Tune in place what pruning left of a model; its zeros stay.

    Args:
        model: holds zeros in the parameters of the names `pruned`.
        dense: what it was before, on the same device.
        pruned: parameter names.
        sequences: token ids (samples, l); random ones are added.
        dtype: that the weights are saved in.
        seed: of the sequences' order.
        bf16: run the models' products in bfloat16.

    Raises:
        RuntimeError: the divergence is not finite.
    """
    kept = {id(model.get_parameter(name)) for name in pruned}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} - kept
    lost = _lost(model, dense, sequences[:_BATCH], bf16)
    rate = min(max(_RATE * math.sqrt(lost), _SLOWEST), _FASTEST)
    moved = [
        _Kept(parameter, dtype, rate) if id(parameter) in kept else Free(parameter, dtype)
        for parameter in model.parameters()
        if id(parameter) not in tables
    ]
    sequences = torch.cat([sequences, random_sequences(model, sequences, seed)])
    tune(model, dense, moved, sequences, seed=seed, bf16=bf16)


def tune(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    moved: Sequence[Moved],
    sequences: torch.Tensor,
    *,
    seed: int,
    bf16: bool,
) -> None:
    """Let some parameters of a model learn from the divergence to the dense one; the others stay.

    Args:
        model: changed in place.
        dense: on the same device.
        moved: the parameters that learn.
        sequences: token ids (samples, l), each read once.
        seed: of their order.
        bf16: run the models' products in bfloat16.

    Raises:
        RuntimeError: the divergence is not finite.
    """
    generator = torch.Generator().manual_seed(name_seed("tune", seed))
    batches = torch.randperm(len(sequences), generator=generator).split(_BATCH)
    groups = [{"params": one.factors, "lr": one.rate} for one in moved]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP) * (1 - step / len(batches))
    )
    with _learning(model, dense, moved):
        for batch in track(batches, "tune", "step"):
            for row in batch.tolist():
                loss = _divergence(model, dense, sequences[row : row + 1].to(model.device), bf16)
                if not torch.isfinite(loss):
                    raise RuntimeError("the divergence from the dense model is not finite.")
                (loss / len(batch)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            schedule.step()
            for one in moved:
                one.show()


@torch.no_grad()
def _lost(model: PreTrainedModel, dense: PreTrainedModel, sequences: torch.Tensor, bf16: bool) -> float:
    """Nats per token, over some sequences."""
    with evaluation_mode(model), evaluation_mode(dense):
        rows = [_divergence(model, dense, row[None].to(model.device), bf16) for row in sequences]
    return max(0.0, float(torch.stack(rows).mean()))  # that it is finite is for `tune` to say


def sequences_to_tune(weights: int, samples: int, length: int, on_cpu: bool = True) -> int:
    """How many sequences of a text a model learns from.

    Args:
        weights: of the model.
        samples, length: sequences that are measured on, and tokens of each.
        on_cpu: where a big model learns from fewer, so that it ends in minutes.
    """
    affordable = max(_BATCH, int(_WORK / (weights * length)))
    return min(_TIMES * samples, affordable) if on_cpu else _TIMES * samples


@contextmanager
def _learning(model: PreTrainedModel, dense: PreTrainedModel, moved: Sequence[Moved]) -> Iterator[None]:
    """Gradients go to what is moved and nowhere else."""
    own = {id(one.parameter) for one in moved}
    with ExitStack() as stack:
        for parameter in model.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(id(parameter) in own)
        for one in moved:
            stack.callback(one.watch())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(evaluation_mode(dense))
        yield


def _divergence(model: PreTrainedModel, dense: PreTrainedModel, ids: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Nats per token, from the dense model."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            wanted = dense(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        found = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    return divergence(found, wanted) / len(found)
