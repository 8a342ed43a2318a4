"""The mask: True = keep. Exact counts in a tensor, in a row, or in a group of an N:M pattern."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import Budget
from hf_mamba_prune.masks.ranking import Keeper, lowest, tie_order
from hf_mamba_prune.masks.slots import divide
from hf_mamba_prune.models.shards import WHOLE, Shard
from hf_mamba_prune.models.targets import Target

MaskOf = Callable[[Target], torch.Tensor]
"""The mask of a target (out, in), from its weights as they are at the call."""


def target_mask(
    target: Target, scores: torch.Tensor, budget: Budget, config: PruningConfig, shard: Shard = WHOLE
) -> torch.Tensor:
    """The mask of one target within its budget.

    Args:
        target: whose mask.
        scores: (out, in) float32, finite, not negative; higher = keep.
        budget: exact counts.
        config: says whether counts hold for the tensor, each row, or each group of a row.
        shard: where `scores` are only those rows of the target that are here, as are those of the mask.

    Returns:
        (out, in) bool.

    Raises:
        RuntimeError: a score is not finite or negative.
    """
    low, high = scores.aminmax() if scores.numel() else (0, 0)  # NaN comes through, and fails both comparisons
    if not (low >= 0 and high < math.inf):
        raise RuntimeError(f"the {config.score} scores of {target.name} are not all finite and >= 0.")
    pieces = []
    for slot, count in budget.of(target):
        own = slot.cut(scores)
        first = shard.first.get(slot.name, 0)
        if config.n_of_m is not None:
            pieces.append(pattern_mask(own, *config.n_of_m, slot.name, config.seed, first))
        elif config.allocation == "per-row":
            counts = divide(count, [own.shape[1]] * (slot.stop - slot.start))[first : first + len(own)]
            pieces.append(row_mask(own, counts, slot.name, config.seed, first))
        else:
            pieces.append(tensor_mask(own, count, slot.name, config.seed, size=slot.size, shard=shard))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def tensor_mask(
    scores: torch.Tensor, count: int, name: str, seed: int, size: int | None = None, shard: Shard = WHOLE
) -> torch.Tensor:
    """Drop the `count` lowest scores of a tensor; equal ones by the seeded order of `selection.tie_order`.

    `size` is that of the whole tensor, of which `scores` are the rows that the shard holds.
    """
    size = scores.numel() if size is None else size
    return Keeper(lowest(lambda: [(name, scores)], count, size, seed, shard), shard).keep(name, scores)


def row_mask(scores: torch.Tensor, counts: list[int], name: str, seed: int, first: int = 0) -> torch.Tensor:
    """Drop the counts[i] lowest scores of row i, which is row first + i of the tensor: (out, in) -> bool (out, in)."""
    keep = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    limits = torch.tensor(counts, device=scores.device)
    step = max(1, (1 << 20) // scores.shape[1])
    for start in range(0, len(scores), step):
        rank = _rank(scores[start : start + step], (first + start) * scores.shape[1], name, seed)
        keep[start : start + step] = rank >= limits[start : start + step, None]
    return keep


def pattern_mask(scores: torch.Tensor, kept: int, of: int, name: str, seed: int, first: int = 0) -> torch.Tensor:
    """Keep the `kept` highest of every `of` neighbours in a row: (out, in) -> bool (out, in)."""
    groups = scores.reshape(-1, of)
    first = first * scores.shape[1] // of
    return row_mask(groups, [of - kept] * len(groups), name, seed, first).view(scores.shape)


def _rank(scores: torch.Tensor, offset: int, name: str, seed: int) -> torch.Tensor:
    """Place of each element in its row, lowest first, equal scores in the seeded order of their flat positions."""
    positions = torch.arange(scores.numel(), device=scores.device) + offset
    order = tie_order(positions, name, seed).view(scores.shape) >> 28
    # The bit pattern of a non-negative float32 has 31 bits and the order 32: one int64 holds both.
    composite = (scores.contiguous().view(torch.int32).long() << 32) | order
    return composite.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
