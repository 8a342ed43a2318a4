"""How a total is divided over the slots: an allocation is one function and one line in `ALLOCATIONS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

import torch

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.ranking import Keeper, lowest
from hf_mamba_prune.masks.slots import Slot, divide_above, weights_to_prune
from hf_mamba_prune.models.shards import Shard

ScoresOf = Callable[[Sequence[Slot]], Iterator[torch.Tensor]]
"""Scores (rows, in) of slots, one after the other and anew at each call, so that only one target's are in memory."""

Division = tuple[list[int], list[str]]
"""Weights to prune of each slot, and the names of the slots held at the ceiling."""

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Of each slot by name, what pruning it alone costs: (sparsity, rise of the loss in nats), sparsities ascending."""

_OUTLIER, _OWL_RANGE = 5.0, 0.08
"""A score that many times above its tensor's mean is an outlier; half the span of the blocks' sparsities."""


def uniform(
    slots: Sequence[Slot], total: int, scores_of: ScoresOf, config: PruningConfig, curves: Curves, shard: Shard
) -> Division:
    """The same sparsity for every tensor, more only where more is gone already."""
    return divide_above(total, [slot.size for slot in slots], weights_gone(slots, scores_of, shard)), []


def weights_gone(slots: Sequence[Slot], scores_of: ScoresOf, shard: Shard) -> list[int]:
    """Of each slot the weights that are zero already: they score 0, and stay zero whatever a budget says of them."""
    live = shard.count(int(torch.count_nonzero(scores)) for scores in scores_of(slots))
    return [slot.size - count for slot, count in zip(slots, live, strict=True)]


def global_ranking(
    slots: Sequence[Slot], total: int, scores_of: ScoresOf, config: PruningConfig, curves: Curves, shard: Shard
) -> Division:
    """One ranking of all weights (arXiv 2505.08299), no slot above the ceiling.

    A slot that the ranking would empty further gets the ceiling, and the rest is ranked again without it. What is
    gone already counts in full, also above the ceiling, or more weights would be zero than was asked for.
    """
    counts: dict[int, int] = {}
    bound: list[str] = []
    while True:
        free = [i for i in range(len(slots)) if i not in counts]
        own, left = [slots[i] for i in free], total - sum(counts.values())

        def visit(own: Sequence[Slot] = own) -> Iterator[tuple[str, torch.Tensor]]:
            return zip([slot.name for slot in own], scores_of(own), strict=True)

        keeper = Keeper(lowest(visit, left, sum(slot.size for slot in own), config.seed, shard), shard)
        kept = shard.count(int(torch.count_nonzero(keeper.keep(name, scores))) for name, scores in visit())
        ranked = {i: slots[i].size - count for i, count in zip(free, kept, strict=True)}
        over = [i for i, count in ranked.items() if count > weights_to_prune(config.ceiling, slots[i].size)]
        held = _held_at_ceiling([slots[i] for i in over], scores_of, config, shard)
        if not over:
            counts |= ranked
            return [counts[i] for i in range(len(slots))], bound
        counts |= {i: most for i, (_, most) in zip(over, held, strict=True)}
        bound += _at_ceiling([slots[i] for i in over], [most for _, most in held], config)


def _held_at_ceiling(
    slots: Sequence[Slot], scores_of: ScoresOf, config: PruningConfig, shard: Shard
) -> list[tuple[int, int]]:
    """(gone already, most that may go) of each slot: the ceiling, or what is gone where that is more."""
    gone = weights_gone(slots, scores_of, shard)
    return [(own, max(own, weights_to_prune(config.ceiling, s.size))) for s, own in zip(slots, gone, strict=True)]


def owl(
    slots: Sequence[Slot], total: int, scores_of: ScoresOf, config: PruningConfig, curves: Curves, shard: Shard
) -> Division:
    """The more outliers among the scores of a block, the less of it goes (OWL, arXiv 2310.05175; meant for Wanda's).

    The sparsities of the blocks span 0.16 at most; all tensors of a block have the same.
    """
    outliers: dict[int | None, int] = {}
    sizes: dict[int | None, int] = {}
    for slot, scores in zip(slots, scores_of(slots), strict=True):
        layer = slot.target.layer
        outliers[layer] = outliers.get(layer, 0) + int((scores > _OUTLIER * scores.mean()).sum())
        sizes[layer] = sizes.get(layer, 0) + slot.size
    shares = {layer: outliers[layer] / sizes[layer] for layer in sizes}
    low, high = min(shares.values()), max(shares.values())
    scale = _OWL_RANGE * 2 / (high - low) if high > low else 0.0
    mean = sum(shares.values()) / len(shares)
    wanted = total / sum(sizes.values())
    sparsities = [wanted - (shares[slot.target.layer] - mean) * scale for slot in slots]
    found = _shifted(slots, sparsities, total, _limits(slots, total, scores_of, config, shard))
    return found, _at_ceiling(slots, found, config)


def _limits(
    slots: Sequence[Slot], total: int, scores_of: ScoresOf, config: PruningConfig, shard: Shard
) -> list[tuple[int, int]]:
    """(least, most) weights to prune of each slot: weights that are gone already stay gone, or more would have to go
    than was asked for; unless there are more of them than that."""
    limits = _held_at_ceiling(slots, scores_of, config, shard)
    return limits if sum(gone for gone, _ in limits) <= total else [(0, most) for _, most in limits]


def _at_ceiling(slots: Sequence[Slot], counts: Sequence[int], config: PruningConfig) -> list[str]:
    """Names of the slots that the ceiling holds; not of those that were emptier than it allows before."""
    return [
        s.name for s, count in zip(slots, counts, strict=True) if count == weights_to_prune(config.ceiling, s.size)
    ]


def _shifted(
    slots: Sequence[Slot], sparsities: Sequence[float], total: int, limits: Sequence[tuple[int, int]]
) -> list[int]:
    """Counts near the given sparsities, all moved by one amount so that they add up, within the limits."""

    def counts(shift: float) -> list[int]:
        wanted = (weights_to_prune(s + shift, slot.size) for s, slot in zip(sparsities, slots, strict=True))
        return [min(max(count, least), most) for count, (least, most) in zip(wanted, limits, strict=True)]

    below, above = -2.0, 2.0
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (middle, above) if sum(counts(middle)) <= total else (below, middle)
    found = counts(below)
    for i, upper in enumerate(counts(above)):  # the last few: those that the next step of the shift would take
        found[i] += min(upper - found[i], total - sum(found))
    return found


def sensitivity(
    slots: Sequence[Slot], total: int, scores_of: ScoresOf, config: PruningConfig, curves: Curves, shard: Shard
) -> Division:
    """The budgets that cost least if the measured rises of the loss simply add up.

    Each curve is made convex and cut into its pieces; the cheapest pieces of all slots go first, up to the ceiling.
    """
    limits = _limits(slots, total, scores_of, config, shard)
    pieces = [
        (cost, index, count)
        for index, (slot, limit) in enumerate(zip(slots, limits, strict=True))
        for cost, count in _pieces(slot, curves[slot.name], *limit)
    ]
    found = [least for least, _ in limits]
    left = total - sum(found)
    for _, index, count in sorted(pieces):
        taken = min(count, left)
        found[index] += taken
        left -= taken
    return found, _at_ceiling(slots, found, config)


def _pieces(slot: Slot, curve: Sequence[tuple[float, float]], least: int, most: int) -> list[tuple[float, int]]:
    """(cost of a weight, how many weights) from `least` to `most` along the lower convex hull of a slot's curve."""
    points = [(0, 0.0)]
    rises = accumulate((rise for _, rise in curve), max, initial=0.0)  # noise must not pay for pruning
    for (level, _), rise in zip(curve, list(rises)[1:], strict=True):
        points.append((weights_to_prune(level, slot.size), rise))
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1 and (y - hull[-1][1]) * (hull[-1][0] - hull[-2][0]) <= (hull[-1][1] - hull[-2][1]) * (
            x - hull[-1][0]
        ):
            hull.pop()
        if not hull or x > hull[-1][0]:
            hull.append((x, y))
    ends = [x for x, _ in hull[1:]]
    costs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(hull, hull[1:], strict=False)]
    if ends:
        ends[-1] = max(ends[-1], most)  # beyond the last level it goes on as before
    pieces, start = [], least
    for end, cost in zip(ends, costs, strict=True):
        stop = min(end, most)
        if stop > start:
            pieces.append((cost, stop - start))
        start = max(start, stop)
    return pieces


ALLOCATIONS = {
    "uniform": uniform,
    "per-row": uniform,
    "global": global_ranking,
    "owl": owl,
    "sensitivity": sensitivity,
}
