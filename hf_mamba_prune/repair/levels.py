"""The levels that weights are rounded to: those that lose least of a normal distribution, as whole numbers.

With up to 5 bits the levels are Lloyd's for the normal distribution, which weights of trained models are near to,
moved to whole numbers from -32 to 31 (the error grows by less than 1 %, with 5 bits by 8 %); codes of 6 bits have even
steps.
"""

from __future__ import annotations

import torch

from hf_mamba_prune.native.codes import LEVELS, WIDTHS, first_level

_HALVES = {1: (4,), 2: (3, 10), 3: (3, 9, 16, 26), 4: (1, 3, 5, 7, 10, 13, 16, 21)}
"""The upper half of each table."""
_HALVES_KEPT = {1: (4,), 2: (16, 31), 3: (9, 14, 20, 28), 4: (7, 9, 11, 13, 16, 19, 23, 29)}
"""Where a mask holds the zeros: for what is left of the distribution without the 45 % nearest to zero."""

_FIVE = (-24, -20, -17, -15, -13, *range(-11, 10), 11, 13, 15, 17, 20, 24)
"""Whole numbers are too coarse for a symmetric table: zero is a level here."""

_LEVEL = 64
"""No level is further from zero."""

ERRORS = {0: 1.0, 1: 0.3634, 2: 0.1175, 3: 0.0347, 4: 0.0097, 5: 0.0027, 6: 0.00105}
"""Mean squared error of rounding a normal variable of variance 1, by the bits of the code."""


def level_table(masked: bool = False) -> torch.Tensor:
    """int8 (LEVELS,): the tables of 1 to 5 bits, one after the other, of all weights or of those kept."""
    table = torch.zeros(LEVELS, dtype=torch.int8)
    for bits, half in (_HALVES_KEPT if masked else _HALVES).items():
        own = [-level for level in reversed(half)] + list(half)
        table[first_level(bits) : first_level(bits) + len(own)] = torch.tensor(own, dtype=torch.int8)
    table[first_level(5) :] = torch.tensor(_FIVE, dtype=torch.int8)
    return table


def levels_of_width(bits: int, table: torch.Tensor) -> torch.Tensor:
    """float32 (2^bits,), rising: the levels of a code, the first ones of them from a table as `level_table` gives."""
    if bits <= 5:
        return table[first_level(bits) : first_level(bits) + (1 << bits)].float()
    return torch.arange(1 << bits).float() - (1 << bits) // 2


class RowLevels:
    """The levels of each row, by the width of its codes (groups, rows), from a table as `level_table` gives."""

    def __init__(self, widths: torch.Tensor, levels: torch.Tensor) -> None:
        most = max(2, 1 << int(widths.max())) if widths.numel() else 2
        table = torch.full((len(WIDTHS), most), torch.inf)
        table[0, 0] = 0.0
        sizes = torch.ones(len(WIDTHS))
        for width in range(1, most.bit_length()):
            own = levels_of_width(width, levels)
            table[width, : len(own)], sizes[width] = own, own.square().mean().sqrt()
        chosen = widths.long()
        self.sizes = sizes[chosen]
        """Root mean squares, (groups, rows)."""
        self._levels = table[chosen]
        middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
        self._middles = middles[chosen].contiguous()
        halves = (torch.arange(4 * _LEVEL) / 2 - _LEVEL).expand(len(WIDTHS), -1)
        self._by_halves = table.gather(1, torch.searchsorted(middles, halves.contiguous())).flatten()
        self._own_halves = (4 * _LEVEL * chosen + 2 * _LEVEL).int()[:, :, None]

    def nearest(self, values: torch.Tensor, least: torch.Tensor | None = None) -> torch.Tensor:
        """Levels: (groups, rows, n) -> the same shape; zero where a level saves less than `least`, squared."""
        levels = self._nearest(values)
        return levels if least is None else levels * (levels * (2 * values - levels) >= least)

    def _nearest(self, values: torch.Tensor) -> torch.Tensor:
        if values.shape[2] == 1:
            return self._levels.gather(2, torch.searchsorted(self._middles, values.contiguous()))
        # As levels are whole numbers, middles lie on halves; five times as fast for many values.
        places = (2 * values).ceil_().clamp_(-2 * _LEVEL, 2 * _LEVEL - 1).int().add_(self._own_halves)
        return self._by_halves.index_select(0, places.flatten()).view(values.shape)

    def codes(self, levels: torch.Tensor) -> torch.Tensor:
        """uint8 places of levels in the tables of their rows."""
        return torch.searchsorted(self._middles, levels.contiguous()).to(torch.uint8)
