"""Exactly the k lowest of many scores, without sorting or joining them: radix selection over float bit patterns.

The bit pattern of a non-negative float32 grows with its value. Two histogram passes (the high 16 bits, then the low
16 bits of those that share the right high bits) give the k-th smallest key; the tensors are visited one at a time, and
the only memory is one histogram. Histograms of several ranks may simply be added. With many scores, a sample of them
says first where the key must be, and one pass takes out the few around it, at most one in fifty; where the sample was
wrong, the two passes do.

Among equal scores the order is that of a seeded hash of (name, index), found by the same passes over the hash: a
choice by position would empty one end of a bf16 model, where thousands of scores are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from hf_mamba_prune import native
from hf_mamba_prune.models.shards import WHOLE, Shard
from hf_mamba_prune.seeds import name_seed

Visit = Callable[[], Iterable[tuple[str, torch.Tensor]]]
"""Gives (name, scores) of every tensor of the ranking, anew and in the same order at each call."""

_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_HASH_BITS = 60
_PIECE = 1 << 20
_MANY = 1 << 20
_STRIDE = 509
_TAKEN = 50


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def tie_order(positions: torch.Tensor, name: str, seed: int) -> torch.Tensor:
    """Pseudo-random order of the elements at flat `positions` of a tensor: int64 in [0, 2^60), nearly never equal."""
    x = (positions + 1) * _signed(0x9E3779B97F4A7C15) + _signed(name_seed(name, seed) * 2 + 1)
    x = (x ^ _shift(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift(x, 27)) * _signed(_MIX[1])
    return _shift(x ^ _shift(x, 31), 64 - _HASH_BITS)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Which scores go: keys below `key`, and of those at `key` the ones whose order is below `order`.

    `at_order` of the elements that sit exactly at both go as well, first come first gone; it is 1 unless two hashes
    collide, and 0 where all at `key` go. `ties` are the positions of those at `key` by tensor, where they were found
    on the way.
    """

    key: int
    order: int
    at_order: int
    seed: int
    ties: Mapping[str, torch.Tensor] | None = field(default=None, compare=False, repr=False)


def lowest(visit: Visit, count: int, total: int, seed: int, shard: Shard = WHOLE) -> Threshold:
    """The threshold under which exactly `count` scores of all tensors lie.

    Args:
        visit: gives the tensors; scores are float32, finite, not negative, of any shape.
        count: 0 to `total`.
        total: number of scores.
        seed: decides among equal scores.
        shard: where every rank visits its own rows (rows, in) of the tensors; the threshold is that of all of them.

    Raises:
        ValueError: fewer scores than `count`.
    """
    if count > total:
        raise ValueError(f"{count} scores were asked for, but there are only {total}.")
    if count == 0:
        return Threshold(key=0, order=0, at_order=0, seed=seed)

    def keys(prefix: int, done: int, bits: int) -> Iterable[torch.Tensor]:
        return map(lambda pair: native.radix_histogram(pair[1].flatten(), prefix, done, bits), visit())

    near = _near_sample(visit, count, total) if shard.process_group is None else None
    if near:
        key, rest, ties = near
        equal = sum(len(positions) for _, positions in ties)
    else:
        key, rest, equal = _descend(keys, (16, 16), count, shard)
    if rest == equal:  # all of them go: there is nothing to decide
        return Threshold(key=key, order=1 << _HASH_BITS, at_order=0, seed=seed)
    if near:
        found = torch.cat([tie_order(positions, name, seed) for name, positions in ties]).sort().values
        order = int(found[rest - 1])
        return Threshold(
            key=key, order=order, at_order=rest - int(torch.searchsorted(found, order)), seed=seed, ties=dict(ties)
        )

    def orders(prefix: int, done: int, bits: int) -> Iterator[torch.Tensor]:
        for name, scores in visit():
            for ties in _ties(scores.flatten(), key):
                order = tie_order(ties + shard.offset(name, scores.shape[-1]), name, seed)
                order = order[(order >> (_HASH_BITS - done)) == prefix]
                bins = (order >> (_HASH_BITS - done - bits)) & ((1 << bits) - 1)
                yield torch.bincount(bins, minlength=1 << bits)

    order, rest, _ = _descend(orders, (20, 20, 20), rest, shard)
    return Threshold(key=key, order=order, at_order=rest, seed=seed)


def _ties(flat: torch.Tensor, key: int) -> Iterator[torch.Tensor]:
    """Positions of the elements at `key`, piece by piece: a constant tensor is one tie, and positions are int64."""
    for start in range(0, len(flat), _PIECE):
        yield native.tie_positions(flat[start : start + _PIECE], key) + start


def _near_sample(visit: Visit, count: int, total: int) -> tuple[int, int, list[tuple[str, torch.Tensor]]] | None:
    """The key of the count-th smallest element, how many at that key are within the count, and where all of them are.

    A sample of the keys says between which two the wanted one must be, and the few elements between those are taken
    out in one pass. None where that would not pay, or where the sample was wrong.
    """
    if count < _MANY:  # a sample would be too small
        return None
    sample, seen = torch.empty(-(-total // _STRIDE)), 0
    for _, scores in visit():
        first = -(-seen // _STRIDE)
        piece = scores.flatten()[first * _STRIDE - seen :: _STRIDE]
        sample[first : first + len(piece)] = piece
        seen += scores.numel()
    expected = count / total * len(sample)
    margin = 1 + 3.5 * (expected * (1 - expected / len(sample))) ** 0.5  # 3.5 standard errors
    if not 1 <= expected - margin <= expected + margin <= len(sample):
        return None

    def sampled(prefix: int, done: int, bits: int) -> Iterable[torch.Tensor]:
        return [native.radix_histogram(sample, prefix, done, bits)]

    low, high = (_descend(sampled, (16, 16), round(end))[0] for end in (expected - margin, expected + margin))
    room = total // _TAKEN
    positions, keys = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int32)
    below, taken, runs = 0, 0, []
    for name, scores in visit():
        under, found = native.between(scores.flatten(), low, high, positions[taken:], keys[taken:])
        below, taken, start = below + under, taken + found, taken
        if taken > room:
            return None
        runs.append((name, start, taken))
    if not below < count <= below + taken:
        return None

    def between(prefix: int, done: int, bits: int) -> Iterable[torch.Tensor]:
        return [native.radix_histogram(keys[:taken].view(torch.float32), prefix, done, bits)]

    key, rest, _ = _descend(between, (16, 16), count - below)
    ties = [(name, positions[start:stop][keys[start:stop] == key].sort().values) for name, start, stop in runs]
    return key, rest, [(name, positions) for name, positions in ties if len(positions)]


def _descend(
    histograms: Callable[[int, int, int], Iterable[torch.Tensor]],
    passes: tuple[int, ...],
    count: int,
    shard: Shard = WHOLE,
) -> tuple[int, int, int]:
    """(the key of the count-th smallest element, how many at that key are within the count, how many there are)."""
    prefix, done, equal = 0, 0, 0
    for bits in passes:
        own = torch.zeros(1 << bits, dtype=torch.int64)
        for histogram in histograms(prefix, done, bits):
            own += histogram.cpu()
        bins = shard.sum(own)
        cumulative = bins.cumsum(0)
        found = int(torch.searchsorted(cumulative, count))
        count -= int(cumulative[found - 1]) if found else 0
        prefix, done, equal = (prefix << bits) | found, done + bits, int(bins[found])
    return prefix, count, equal


class Keeper:
    """Applies a threshold to the tensors of its ranking, one by one and in the same order.

    Where rows are divided over ranks, each applies it to its own.
    """

    def __init__(self, threshold: Threshold, shard: Shard = WHOLE) -> None:
        self._threshold, self._shard = threshold, shard
        self._left = threshold.at_order

    def keep(self, name: str, scores: torch.Tensor) -> torch.Tensor:
        """Scores -> bool of the same shape, True where the weight stays."""
        threshold = self._threshold
        flat = scores.flatten()
        keep = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
        equal = native.keep_above(flat, threshold.key, keep)
        if not equal or threshold.order == 1 << _HASH_BITS:
            return keep.view(scores.shape)
        known = threshold.ties
        for ties in _ties(flat, threshold.key) if known is None else [known[name].to(flat.device)]:
            order = tie_order(ties + self._shard.offset(name, scores.shape[-1]), name, threshold.seed)
            exact = ties[order == threshold.order]
            keep[ties[order > threshold.order]] = True
            keep[exact[self._left :]] = True
            self._left -= min(self._left, len(exact))
            equal -= len(ties)
            if not equal:
                break
        return keep.view(scores.shape)
