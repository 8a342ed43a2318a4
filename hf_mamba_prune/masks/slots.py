"""What gets a number of its own when sparsity is given out, and whole numbers that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_mamba_prune.config import PruningConfig, closest
from hf_mamba_prune.models.targets import Target


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What gets a number of its own: a target, or some of its output rows when the user set a part's sparsity."""

    target: Target
    component: str
    start: int
    stop: int

    @classmethod
    def whole(cls, target: Target) -> Slot:
        """All rows of a target."""
        return cls(target=target, component=target.component, start=0, stop=target.shape[0])

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


def make_slots(targets: Sequence[Target], config: PruningConfig) -> tuple[Slot, ...]:
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
            slots += [
                Slot(target=target, component=part, start=start, stop=stop) for part, start, stop in target.parts
            ]
        else:
            slots.append(Slot.whole(target))
    return tuple(slots)


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


def divide_above(total: int, sizes: Sequence[int], least: Sequence[int]) -> list[int]:
    """As `divide`, none below its `least`; where those alone are more than `total`, they are left aside."""
    if sum(least) > total:
        return divide(total, sizes)
    held: dict[int, int] = {}
    while True:
        free = [i for i in range(len(sizes)) if i not in held]
        shares = dict(zip(free, divide(total - sum(held.values()), [sizes[i] for i in free]), strict=True))
        below = {i: least[i] for i in free if shares[i] < least[i]}
        if not below:
            return [(held | shares)[i] for i in range(len(sizes))]
        held |= below


def weights_to_prune(sparsity: float, size: int) -> int:
    """The whole number of weights that a sparsity means: rounded to the nearest, halves to even."""
    return round(sparsity * size)
