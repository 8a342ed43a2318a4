"""What does pruning one thing alone cost? The loss when some weights are masked and all others stay dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.allocations import Curves
from hf_mamba_prune.masks.calibration import Statistics, TargetStatistics, evaluation_mode
from hf_mamba_prune.masks.scores import Score
from hf_mamba_prune.masks.slots import Slot, make_slots, weights_to_prune
from hf_mamba_prune.masks.tensor import tensor_mask
from hf_mamba_prune.models.targets import Target
from hf_mamba_prune.progress import track

CURVE_LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)
CURVE_SEQUENCES = 8


class Prober:
    """Masks some weights of a model, measures its loss, and puts them back.

    Args:
        model: left as it was after each measurement.
        score: which weights go first.
        statistics: of all targets that will be pruned.
        seed: among equal scores.
        loss: measures the model as it is, in nats per token.
    """

    def __init__(
        self, model: PreTrainedModel, score: Score, statistics: Statistics, seed: int, loss: Callable[[], float]
    ) -> None:
        self._model, self._score, self._statistics, self._seed = model, score, statistics, seed
        self._loss = loss
        self.dense_loss = loss()

    @contextmanager
    def masked(self, slots: Sequence[Slot], level: float) -> Iterator[None]:
        """A context in which the same share of each slot is masked, from 0 to 1."""
        with _restored([slot.target.weight(self._model) for slot in slots]):
            for slot in slots:
                weight = slot.target.weight(self._model)
                scores = slot.cut(
                    self._score(slot.target, weight, self._statistics.get(slot.target.name, TargetStatistics()))
                )
                keep = tensor_mask(scores, weights_to_prune(level, slot.size), slot.name, self._seed)
                slot.cut(weight).masked_fill_(~keep, 0)
            yield

    def rise(self) -> float:
        """The loss as the model is now, above dense, in nats per token."""
        return self._loss() - self.dense_loss

    def rises(self, slots: Sequence[Slot], levels: Sequence[float]) -> tuple[float, ...]:
        """The same with each share of the slots masked."""
        found = []
        for level in levels:
            with self.masked(slots, level):
                found.append(self.rise())
        return tuple(found)

    def rises_of(
        self, change: Callable[[float], None], weights: Sequence[torch.Tensor], levels: Sequence[float]
    ) -> tuple[float, ...]:
        """The same after any change to these live weights."""
        found = []
        for level in levels:
            with _restored(weights):
                change(level)
                found.append(self.rise())
        return tuple(found)


def measure_curves(
    model: PreTrainedModel,
    targets: Sequence[Target],
    score: Score,
    statistics: Statistics,
    sequences: torch.Tensor,
    config: PruningConfig,
) -> Curves:
    """Loss against sparsity of each target alone, for `allocation.sensitivity`.

    Args:
        model: dense; left as it was.
        targets: the weights that may be pruned.
        score: which weights go first.
        statistics: that it needs.
        sequences: token ids (samples, l); the first `CURVE_SEQUENCES` of them are measured.
        config: seed, and the parts with a sparsity of their own.
    """
    seen = sequences[:CURVE_SEQUENCES]
    prober = Prober(model, score, statistics, config.seed, lambda: mean_loss(model, seen))
    slots = make_slots(targets, config)
    return {
        slot.name: tuple(zip(CURVE_LEVELS, prober.rises([slot], CURVE_LEVELS), strict=True))
        for slot in track(slots, "sensitivity", "weight")
    }


@torch.no_grad()
def mean_loss(model: PreTrainedModel, sequences: torch.Tensor) -> float:
    """Mean cross-entropy in nats per token over sequences (samples, l), one at a time."""
    total = 0.0
    with evaluation_mode(model):
        for ids in sequences.to(model.device).split(1):
            logits = model(input_ids=ids, use_cache=False).logits
            total += F.cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item()
    return total / len(sequences)


@contextmanager
@torch.no_grad()
def _restored(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    before = [weight.clone() for weight in weights]
    try:
        yield
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.copy_(value)
