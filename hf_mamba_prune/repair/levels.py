"""The levels that weights are rounded to: those that lose least of a normal distribution, as whole numbers.

With up to 4 bits the levels are Lloyd's for the normal distribution, which weights of trained models are near to,
moved to whole numbers from -32 to 31 (the error grows by less than 1 %); wider codes have even steps.
"""

from __future__ import annotations

import torch

from hf_mamba_prune.native.codes import LEVELS, first_level

_HALVES = {1: (4,), 2: (3, 10), 3: (3, 9, 16, 26), 4: (1, 3, 5, 7, 10, 13, 16, 21)}
"""The upper half of each table; under masks, too, zero is no level: a mask holds the zeros."""

ERRORS = {0: 1.0, 1: 0.3634, 2: 0.1175, 3: 0.0347, 4: 0.0097, 5: 0.0035, 6: 0.00105}
"""Mean squared error of rounding a normal variable of variance 1, by the bits of the code."""


def level_table() -> torch.Tensor:
    """int8 (LEVELS,): the tables of 1, 2, 3 and 4 bits, one after the other."""
    table = torch.zeros(LEVELS, dtype=torch.int8)
    for bits, half in _HALVES.items():
        own = [-level for level in reversed(half)] + list(half)
        table[first_level(bits) : first_level(bits) + len(own)] = torch.tensor(own, dtype=torch.int8)
    return table


def levels_of_width(bits: int) -> torch.Tensor:
    """float32 (2^bits,), rising: the levels of a code."""
    if bits in _HALVES:
        return level_table()[first_level(bits) : first_level(bits) + (1 << bits)].float()
    return torch.arange(1 << bits).float() - (1 << bits) // 2
