"""Where does the sparsity go? An exact number of weights for every target, all of it from the dense model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.allocations import ALLOCATIONS, Curves, ScoresOf, weights_gone
from hf_mamba_prune.masks.slots import Slot, divide_above, make_slots, weights_to_prune
from hf_mamba_prune.models.shards import WHOLE, Shard
from hf_mamba_prune.models.targets import Target

_STRAY = 0.001
"""Share of weights that may be zero beyond what was asked for by chance: small ones, rounded to a lower precision."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many weights of each slot go.

    Args:
        slots: in the order in which data flows through the model.
        counts: weights to set to zero, one for each slot; 0 <= count <= size.
        at_ceiling: names of the slots that a global ranking would have emptied further than the ceiling allows.
    """

    slots: tuple[Slot, ...]
    counts: tuple[int, ...]
    at_ceiling: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Weights to set to zero in the whole model."""
        return sum(self.counts)

    def of(self, target: Target) -> list[tuple[Slot, int]]:
        """The slots of one target with their counts."""
        return [(s, c) for s, c in zip(self.slots, self.counts, strict=True) if s.target.name == target.name]


def total_to_prune(targets: Sequence[Target], config: PruningConfig, sparsity: float) -> int:
    """How many weights go in the whole model, before anything is scored.

    Args:
        targets: the weights that may be pruned.
        config: pattern and fixed component sparsities.
        sparsity: of all targets together; ignored for an N:M pattern, which sets every count.

    Raises:
        ValueError: an unknown component, a pattern that does not divide a row, or numbers that cannot add up.
    """
    slots = make_slots(targets, config)
    if config.n_of_m is not None:
        return sum(_pattern_count(slot, *config.n_of_m) for slot in slots)
    size = sum(slot.size for slot in slots)
    total = weights_to_prune(sparsity, size)
    fixed = _fixed_counts(slots, config, sparsity, lambda own: [0] * len(own))
    open_slots = [slot for slot in slots if slot.name not in fixed]
    free = sum(slot.size for slot in open_slots)
    if sparsity != config.sparsity:  # on the way, roundings of the parts and of the whole may be one apart
        total = min(max(total, sum(fixed.values())), sum(fixed.values()) + free)
    if not free and abs(total - sum(fixed.values())) <= 1e-6 * size:  # as near as a sparsity is written
        return sum(fixed.values())
    rest = total - sum(fixed.values())
    if not 0 <= rest <= free:
        raise ValueError(
            f"a sparsity of {sparsity:.6g} contradicts component_sparsity, whose components alone make "
            f"{sum(fixed.values()) / size:.6g} of all prunable weights: change one of them."
        )
    room = sum(weights_to_prune(config.ceiling, slot.size) for slot in open_slots)
    if config.allocation not in ("uniform", "per-row") and rest > room:
        raise ValueError(
            f"a sparsity of {rest / free:.4g} cannot be reached with a ceiling of {config.ceiling:.4g} for each "
            "tensor: raise the ceiling."
        )
    return total


def refuse_sparser(model: nn.Module, targets: Sequence[Target], config: PruningConfig) -> None:
    """Refuse a model that has more zeros than are asked for: none would be added, and none can be taken back.

    A pattern is left alone, as more zeros than it needs may still stand in the wrong places.

    Raises:
        ValueError: it has.
    """
    if config.n_of_m is not None or config.sparsity is None:
        return
    size = sum(target.size for target in targets)
    gone = sum(int((target.weight(model) == 0).sum()) for target in targets)
    if gone > total_to_prune(targets, config, config.sparsity) + _STRAY * size:
        if config.bits is not None or config.size is not None:
            raise ValueError(
                f"{gone:,} of the {size:,} prunable weights are zero already, {gone / size:.1%}: rounding to a budget "
                "would fill them again. Take the dense model, or keep the zeros by code_bits (--values int1 to int4)."
            )
        raise ValueError(
            f"{gone:,} of the {size:,} prunable weights are zero already, {gone / size:.1%}, which is more than a "
            f"sparsity of {config.sparsity:.6g} asks for: nothing would be removed. Ask for more, or take the dense "
            "model."
        )


def allocate(
    targets: Sequence[Target],
    scores_of: ScoresOf,
    config: PruningConfig,
    sparsity: float,
    curves: Curves | None = None,
    shard: Shard = WHOLE,
) -> Budget:
    """Numbers for every slot that add up to exactly `total_to_prune`.

    Args:
        targets: the weights that may be pruned.
        scores_of: their scores.
        config: allocation, ceiling, fixed component sparsities, pattern, seed.
        sparsity: of all targets together.
        curves: what `sensitivity.measure_curves` found; only the allocation of that name reads them.
        shard: where `scores_of` gives only the rows that are here; the numbers are those of all ranks together.

    Raises:
        ValueError: see `total_to_prune`; or the ceiling leaves too little room.
    """
    total = total_to_prune(targets, config, sparsity)
    slots = make_slots(targets, config)
    if config.n_of_m is not None:
        return Budget(slots=slots, counts=tuple(_pattern_count(slot, *config.n_of_m) for slot in slots))
    chosen = _fixed_counts(slots, config, sparsity, lambda own: weights_gone(own, scores_of, shard))
    free = [slot for slot in slots if slot.name not in chosen]
    rest = total - sum(chosen.values())
    divide_over = ALLOCATIONS[config.allocation]
    measured = {} if curves is None else curves
    counts, bound = divide_over(free, rest, scores_of, config, curves=measured, shard=shard)
    chosen |= {slot.name: count for slot, count in zip(free, counts, strict=True)}
    return Budget(slots=slots, counts=tuple(chosen[slot.name] for slot in slots), at_ceiling=tuple(bound))


def _fixed_counts(
    slots: Sequence[Slot], config: PruningConfig, sparsity: float, gone: Callable[[Sequence[Slot]], list[int]]
) -> dict[str, int]:
    """The counts of components with a share of their own, which rises with the whole while a schedule is under way.

    `gone` says what is zero of their slots already; it moves counts between them, not their sum.
    """
    progress = sparsity / config.sparsity if config.sparsity else 1.0
    counts: dict[str, int] = {}
    for component, share in config.component_sparsity.items():
        own = [slot for slot in slots if slot.component == component]
        total = weights_to_prune(share * progress, sum(slot.size for slot in own))
        divided = divide_above(total, [slot.size for slot in own], gone(own))
        counts |= dict(zip([slot.name for slot in own], divided, strict=True))
    return counts


def _pattern_count(slot: Slot, kept: int, of: int) -> int:
    columns = slot.target.shape[1]
    if columns % of:
        raise ValueError(
            f"pattern {kept}:{of} does not fit {slot.target.name}: its rows have {columns} weights, which {of} does "
            f"not divide. Leave {slot.target.component} out with --components, or choose another pattern."
        )
    return slot.size // of * (of - kept)
