"""Where does the sparsity go? An exact number of weights for every target, all of it from the dense model.

An allocation is one function and one line in `ALLOCATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hf_mamba_prune.architectures import Target
from hf_mamba_prune.config import PruningConfig, closest
from hf_mamba_prune.selection import Keeper, lowest

ScoreOf = Callable[[Target], torch.Tensor]
"""Scores of one target (out, in), computed anew at each call, so that only one target's are in memory."""

Division = tuple[list[int], list[str]]
"""Weights to prune of each slot, and the names of the slots held at the ceiling."""


@dataclass(frozen=True)
class Slot:
    """What gets a number of its own: a target, or some of its output rows when the user set a part's sparsity."""

    target: Target
    component: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Unique; the target's state-dict name when the slot is the whole target."""
        whole = self.component == self.target.component
        return self.target.name if whole else f"{self.target.name}[{self.start}:{self.stop}]"

    @property
    def size(self) -> int:
        """Number of weights."""
        return (self.stop - self.start) * self.target.shape[1]

    def cut(self, scores: torch.Tensor) -> torch.Tensor:
        """(out, in) of the target -> (rows, in) of the slot."""
        return scores[self.start : self.stop]


@dataclass(frozen=True)
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


def divide(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to `sizes`, in whole numbers: largest remainders, the earlier first of equals."""
    whole = sum(sizes)
    if whole == 0:
        return [0] * len(sizes)
    shares = [total * size // whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares


def weights_to_prune(sparsity: float, size: int) -> int:
    """The whole number of weights that a sparsity means: rounded to the nearest, halves to even."""
    return round(sparsity * size)


def uniform(slots: Sequence[Slot], total: int, score_of: ScoreOf, config: PruningConfig) -> Division:
    """The same sparsity for every tensor."""
    return divide(total, [slot.size for slot in slots]), []


def global_ranking(slots: Sequence[Slot], total: int, score_of: ScoreOf, config: PruningConfig) -> Division:
    """One ranking of all weights (arXiv 2505.08299), no slot above the ceiling.

    A slot that the ranking would empty further gets the ceiling, and the rest is ranked again without it.
    """
    highest = [weights_to_prune(config.ceiling, slot.size) for slot in slots]
    counts: dict[int, int] = {}
    bound: list[str] = []
    while True:
        free = [i for i in range(len(slots)) if i not in counts]
        ranked = _ranked_counts([slots[i] for i in free], total - sum(counts.values()), score_of, config.seed)
        over = [i for i, count in zip(free, ranked, strict=True) if count > highest[i]]
        if not over:
            counts |= dict(zip(free, ranked, strict=True))
            return [counts[i] for i in range(len(slots))], bound
        counts |= {i: highest[i] for i in over}
        bound += [slots[i].name for i in over]


def _ranked_counts(slots: Sequence[Slot], total: int, score_of: ScoreOf, seed: int) -> list[int]:
    def visit():
        for slot in slots:
            yield slot.name, slot.cut(score_of(slot.target))

    keeper = Keeper(lowest(visit, total, sum(slot.size for slot in slots), seed))
    return [scores.numel() - int(torch.count_nonzero(keeper.keep(name, scores))) for name, scores in visit()]


ALLOCATIONS = {"uniform": uniform, "per-row": uniform, "global": global_ranking}


def total_to_prune(targets: Sequence[Target], config: PruningConfig, sparsity: float) -> int:
    """How many weights go in the whole model, before anything is scored.

    Args:
        targets: the weights that may be pruned.
        config: pattern and fixed component sparsities.
        sparsity: of all targets together; ignored for an N:M pattern, which sets every count.

    Raises:
        ValueError: an unknown component, a pattern that does not divide a row, or numbers that cannot add up.
    """
    slots = _slots(targets, config)
    if config.group is not None:
        return sum(_group_count(slot, *config.group) for slot in slots)
    size = sum(slot.size for slot in slots)
    total = weights_to_prune(sparsity, size)
    fixed = _fixed_counts(slots, config, sparsity)
    open_slots = [slot for slot in slots if slot.name not in fixed]
    free = sum(slot.size for slot in open_slots)
    if sparsity != config.sparsity:  # on the way, roundings of the parts and of the whole may be one apart
        total = min(max(total, sum(fixed.values())), sum(fixed.values()) + free)
    rest = total - sum(fixed.values())
    if not 0 <= rest <= free:
        raise ValueError(
            f"a sparsity of {sparsity:.6g} contradicts component_sparsity, whose components alone make "
            f"{sum(fixed.values()) / size:.6g} of all prunable weights: change one of them."
        )
    room = sum(weights_to_prune(config.ceiling, slot.size) for slot in open_slots)
    if config.allocation == "global" and rest > room:
        raise ValueError(
            f"a sparsity of {rest / free:.4g} cannot be reached with a ceiling of {config.ceiling:.4g} for each "
            "tensor: raise the ceiling."
        )
    return total


def allocate(targets: Sequence[Target], score_of: ScoreOf, config: PruningConfig, sparsity: float) -> Budget:
    """Numbers for every slot that add up to exactly `total_to_prune`.

    Args:
        targets: the weights that may be pruned.
        score_of: their scores.
        config: allocation, ceiling, fixed component sparsities, pattern, seed.
        sparsity: of all targets together.

    Raises:
        ValueError: see `total_to_prune`; or the ceiling leaves too little room.
    """
    total = total_to_prune(targets, config, sparsity)
    slots = _slots(targets, config)
    if config.group is not None:
        return Budget(slots, tuple(_group_count(slot, *config.group) for slot in slots))
    chosen = _fixed_counts(slots, config, sparsity)
    free = [slot for slot in slots if slot.name not in chosen]
    counts, bound = ALLOCATIONS[config.allocation](free, total - sum(chosen.values()), score_of, config)
    chosen |= {slot.name: count for slot, count in zip(free, counts, strict=True)}
    return Budget(slots, tuple(chosen[slot.name] for slot in slots), tuple(bound))


def _slots(targets: Sequence[Target], config: PruningConfig) -> tuple[Slot, ...]:
    """Whole targets, divided into their parts where the user set the sparsity of a part."""
    named = config.component_sparsity
    known = {t.component for t in targets} | {part for t in targets for part, _, _ in t.parts}
    for name in named:
        if name not in known:
            raise ValueError(closest("component in component_sparsity", name, tuple(sorted(known))))
    slots = []
    for target in targets:
        if any(part in named for part, _, _ in target.parts):
            if target.component in named:
                raise ValueError(f"component_sparsity names {target.component!r} and also a part of it: choose one.")
            slots += [Slot(target, part, start, stop) for part, start, stop in target.parts]
        else:
            slots.append(Slot(target, target.component, 0, target.shape[0]))
    return tuple(slots)


def _fixed_counts(slots: Sequence[Slot], config: PruningConfig, sparsity: float) -> dict[str, int]:
    """The counts of components with a share of their own, which rises with the whole while a schedule is under way."""
    progress = sparsity / config.sparsity if config.sparsity else 1.0
    counts: dict[str, int] = {}
    for component, share in config.component_sparsity.items():
        own = [slot for slot in slots if slot.component == component]
        total = weights_to_prune(share * progress, sum(slot.size for slot in own))
        counts |= dict(zip([slot.name for slot in own], divide(total, [slot.size for slot in own]), strict=True))
    return counts


def _group_count(slot: Slot, kept: int, of: int) -> int:
    columns = slot.target.shape[1]
    if columns % of:
        raise ValueError(
            f"pattern {kept}:{of} does not fit {slot.target.name}: its rows have {columns} weights, which {of} does "
            f"not divide. Leave {slot.target.component} out with --components, or choose another pattern."
        )
    return slot.size // of * (of - kept)
