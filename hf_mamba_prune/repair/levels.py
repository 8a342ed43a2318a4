"""The levels that weights are rounded to: those that lose least for what their codes take in a file.

A file holds codes by their entropy, for which even steps are best (Gish and Pierce, 1968): with 3 bits and more levels
are odd numbers, and the step is no smaller than one at which the outermost are hardly used. With 1 and 2 bits, and
under masks, levels are Lloyd's for the normal distribution, which weights of trained models are near to, moved to
whole numbers from -32 to 31.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_mamba_prune.native.codes import LEVELS, WIDTHS, first_level

_HALVES = {1: (4,), 2: (3, 10)} | {bits: tuple(range(1, 1 << bits, 2)) for bits in (3, 4, 5)}
"""The upper half of each table."""
_HALVES_KEPT = {1: (4,), 2: (16, 31), 3: (9, 14, 20, 28), 4: (7, 9, 11, 13, 16, 19, 23, 29)}
"""Where a mask holds the zeros: for what is left of the distribution without the 45 % nearest to zero."""

_LEVEL = 64
"""No level is further from zero."""

_SHARES = (0.7, 3.1)
_SHARES_EVEN = {3: (1.6, 4.0), 4: (1.94, 4.0), 5: (2.12, 4.0), 6: (2.22, 4.0)}
"""Scales of a row that may be, beside the one that gives weights and levels the same root mean square: even levels of
6 bits may reach to four times that of the weights, those of 2 bits to one and a half. Beyond the least one, the error
of even levels grows by as much as the entropy falls."""

ERRORS = {0: 1.0, 1: 0.3634, 2: 0.1175, 3: 0.0431, 4: 0.0149, 5: 0.0045, 6: 0.0012}
"""Mean squared error of rounding a normal variable of variance 1, by the bits of the code."""

ENTROPIES = {0: 0.0, 1: 1.0, 2: 1.91, 3: 2.57, 4: 3.3, 5: 4.17, 6: 5.1}
"""Bits that its codes take in a file, likewise."""
KEPT_ENTROPIES = {1: 1.0, 2: 1.89, 3: 2.75, 4: 3.7}
"""The same of what is kept under a mask; more where it keeps more."""


def level_table(masked: bool = False) -> torch.Tensor:
    """int8 (LEVELS,): the tables of 1 to 5 bits, one after the other, of all weights or of those kept."""
    table = torch.zeros(LEVELS, dtype=torch.int8)
    for bits, half in (_HALVES_KEPT if masked else _HALVES).items():
        own = [-level for level in reversed(half)] + list(half)
        table[first_level(bits) : first_level(bits) + len(own)] = torch.tensor(own, dtype=torch.int8)
    return table


def levels_of_width(bits: int, table: torch.Tensor) -> torch.Tensor:
    """float32 (2^bits,), rising: the levels of a code, the first ones of them from a table as `level_table` gives."""
    if bits <= 5:
        return table[first_level(bits) : first_level(bits) + (1 << bits)].float()
    return torch.arange(1 << bits).float() - (1 << bits) // 2


class RowLevels:
    """The levels of each row, by the width of its codes (groups, rows), of all weights or of those kept by a mask."""

    def __init__(self, widths: torch.Tensor, masked: bool = False) -> None:
        levels = level_table(masked)
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
        shares = [_SHARES if masked else _SHARES_EVEN.get(bits, _SHARES) for bits in WIDTHS]
        self._least, self._most = torch.tensor(shares)[chosen].unbind(-1)
        self._levels = table[chosen]
        middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
        self._middles = middles[chosen].contiguous()
        halves = (torch.arange(4 * _LEVEL) / 2 - _LEVEL).expand(len(WIDTHS), -1)
        self._by_halves = table.gather(1, torch.searchsorted(middles, halves.contiguous())).flatten()
        self._own_halves = (4 * _LEVEL * chosen + 2 * _LEVEL).int()[:, :, None]

    def scales(self, rows: torch.Tensor, tries: int) -> Iterator[torch.Tensor]:
        """Scales to try, rising, each (groups, rows), of rows of these root mean squares."""
        for share in torch.linspace(0, 1, tries).tolist():
            yield (rows / self.sizes * torch.lerp(self._least, self._most, share)).clamp_min(1e-30)

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
