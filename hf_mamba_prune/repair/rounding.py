"""Rounding that repairs: levels for all rows at once, each weight taking over what those before it lost.

A weight W (out, in) becomes level x scale of its row x scale of its column, minimising ||(W - V) X||^2 by
H = E[x x^T]: error feedback along the columns, largest inputs first (GPTQ, arXiv 2210.17323), then coordinate descent
from there, and in between the rows' scales in closed form. Rows have codes of a width of their own; under a mask only
kept weights move.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_mamba_prune.native.codes import WIDTHS
from hf_mamba_prune.repair.levels import levels_of_width

_COLUMNS = 64
"""Columns whose changes are carried over to the others at once."""
_LEVEL = 64
"""No level is further from zero."""
_SWEEPS = 2
_ROUNDS = 2
_SHARES, _TRIES, _FEW_TRIES = (0.7, 3.1), 33, 13
"""Scales that are tried, fewer for an estimate, beside the one that gives weights and levels the same root mean
square: even levels of 6 bits reach to four times that of the weights, those of 2 bits to one and a half."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight on its grid.

    Args:
        codes: uint8 (out, in), places in the table of levels of the row's width; 0 where nothing is kept.
        scales: bfloat16 (out,).
        column_scales: bfloat16 (in,).
        weight: float32 (out, in), level x scale x scale of the column, in that order.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    column_scales: torch.Tensor
    weight: torch.Tensor


@torch.no_grad()
def round_weight(
    weight: torch.Tensor,
    hessians: torch.Tensor,
    bits: torch.Tensor,
    damping: float = 0.01,
    keep: torch.Tensor | None = None,
    by_column: bool = True,
) -> Rounded:
    """Round a weight so that its outputs stay.

    Args:
        weight: (out, in), what is to be reproduced.
        hessians: (groups, in, in), E[x x^T] over tokens for each range of rows, as `torch.tensor_split` divides them;
            symmetric and positive semidefinite; may be singular.
        bits: uint8 (out,), width of each row's codes; a row of 0 becomes zero.
        damping: added to the diagonal, as a share of its mean.
        keep: bool (out, in), True = kept; None: all. Others become zero.
        by_column: give columns scales of their own; otherwise all of them are 1.

    Raises:
        RuntimeError: a Hessian is not finite.
    """
    if not torch.isfinite(hessians).all():
        raise RuntimeError("the inputs that a weight is rounded on are not finite.")
    column_scales = _column_scales(weight) if by_column else torch.ones(weight.shape[1], dtype=torch.bfloat16)
    by = column_scales.float()
    groups = _Groups(len(hessians), len(weight))
    solver = _Solver(torch.stack([_damped(own.double() * (by * by[:, None]).double(), damping) for own in hessians]))
    own = groups.split((weight.float() / by).contiguous())
    grids = _Grids(groups.split(bits))
    codes, scales, levels = solver.round(own, grids, None if keep is None else groups.split(keep))
    codes, scales, levels = groups.join(codes), groups.join(scales), groups.join(levels)
    rounded = levels * scales[:, None] * by
    return Rounded(codes=codes, scales=scales.bfloat16(), column_scales=column_scales, weight=rounded)


class _Groups:
    """Rows in ranges, as `torch.tensor_split` divides them, side by side; short ranges have empty rows behind."""

    def __init__(self, count: int, rows: int) -> None:
        self._sizes = [len(part) for part in torch.arange(rows).tensor_split(count)]

    def split(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, ...) -> (groups, most rows of a group, ...)"""
        return nn.utils.rnn.pad_sequence(list(rows.split(self._sizes)), batch_first=True)

    def join(self, parts: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return torch.cat([part[:size] for part, size in zip(parts, self._sizes, strict=True)])


class _Grids:
    """The levels of each row, by the width of its codes (groups, rows)."""

    def __init__(self, widths: torch.Tensor) -> None:
        most = max(2, 1 << int(widths.max())) if widths.numel() else 2
        table = torch.full((len(WIDTHS), most), torch.inf)
        table[0, 0] = 0.0
        sizes = torch.ones(len(WIDTHS))
        for width in range(1, most.bit_length()):
            own = levels_of_width(width)
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

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Levels: (groups, rows, n) -> the same shape."""
        if values.shape[2] == 1:
            return self._levels.gather(2, torch.searchsorted(self._middles, values.contiguous()))
        # As levels are whole numbers, middles lie on halves; five times as fast for many values.
        places = (2 * values).ceil_().clamp_(-2 * _LEVEL, 2 * _LEVEL - 1).int().add_(self._own_halves)
        return self._by_halves.index_select(0, places.flatten()).view(values.shape)

    def codes(self, levels: torch.Tensor) -> torch.Tensor:
        """uint8 places of levels in the tables of their rows."""
        return torch.searchsorted(self._middles, levels.contiguous()).to(torch.uint8)


def _damped(system: torch.Tensor, damping: float) -> torch.Tensor:
    """With an addition to the diagonal; an input that is never there has a unit of its own."""
    least = damping * system.diagonal().mean()
    system.diagonal().add_(least if least > 0 else 1.0)
    return system


@torch.no_grad()
def nearest_errors(weight: torch.Tensor, hessian: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    """What each row would lose at each width, from what error feedback leaves of its inputs.

    Args:
        weight: (out, in).
        hessian: (in, in), E[x x^T] over tokens.
        damping: as in `round_weight`.

    Returns:
        float64 (out, widths of `native.codes.WIDTHS`), about E[((w - v) x)^2]; all of E[(w x)^2] at 0 bits.
    """
    by = _column_scales(weight).float()
    own = (weight.float() / by).contiguous()
    system = hessian.double() * (by * by[:, None]).double()
    whole = ((own.double() @ system) * own.double()).sum(1)
    solver = _Solver(_damped(system, damping)[None])
    found = [whole]
    for width in WIDTHS[1:]:
        grids = _Grids(torch.full((1, len(own)), width))
        found.append(torch.minimum(solver.first_scales(own[None], grids, None, _FEW_TRIES)[1][0].double(), found[-1]))
    return torch.stack(found, 1)


def _column_scales(weight: torch.Tensor) -> torch.Tensor:
    """bfloat16 (in,): root mean squares of the columns beside their mean; 1 where a column is zero."""
    sizes = weight.float().square().mean(0).sqrt()
    mean = sizes.mean()
    sizes = torch.where(sizes > 0, (sizes / mean.clamp_min(1e-30)).clamp(1 / 64, 64), 1.0)
    return sizes.bfloat16()


class _Solver:
    """Rounds groups of rows, (groups, rows, in), each on its Hessian, (groups, in, in) float64, positive definite.

    Blocks of columns stand with their columns in front, so that the next one is read and written in one piece.
    """

    def __init__(self, systems: torch.Tensor) -> None:
        self._systems = systems.float()
        self._diagonals = self._systems.diagonal(dim1=1, dim2=2).contiguous()
        self._order = torch.argsort(systems.diagonal(dim1=1, dim2=2), descending=True)
        ordered = torch.stack([own[order][:, order] for own, order in zip(systems, self._order, strict=True)])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
        self._factors = torch.linalg.cholesky(inverse, upper=True).float()

    def round(
        self, rows: torch.Tensor, grids: _Grids, keep: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes uint8, scales (groups, rows) as bfloat16 holds them, and levels."""
        scales = _as_held(self.first_scales(rows, grids, keep)[0])
        found = self._feed_back(rows, grids, scales, keep)
        for _ in range(_ROUNDS):
            scales = _as_held(self._fitted_scales(rows, found, scales))
            for _ in range(_SWEEPS):
                self._descend(rows, found, grids, scales, keep)
        codes = grids.codes(found)
        if keep is not None:
            codes *= keep
        return codes, scales, found

    def first_scales(
        self, rows: torch.Tensor, grids: _Grids, keep: torch.Tensor | None, tries: int = _TRIES
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those that lose least when each weight goes to its nearest level, (groups, rows), and what they lose."""
        weights = (1 / self._factors.diagonal(dim1=1, dim2=2).square()).gather(1, torch.argsort(self._order))[:, None]
        weights = weights.expand_as(rows) if keep is None else weights * keep
        size = ((rows.square() * weights).sum(2) / weights.sum(2).clamp_min(1e-30)).sqrt() / grids.sizes
        best, least = torch.zeros_like(size), torch.full_like(size, torch.inf)
        for share in torch.linspace(*_SHARES, tries).tolist():
            scales = (size * share).clamp_min(1e-30)[:, :, None]
            errors = ((rows - grids.nearest(rows / scales) * scales).square() * weights).sum(2)
            better = errors < least
            least, best = torch.where(better, errors, least), torch.where(better, scales[:, :, 0], best)
        return best, least

    def _feed_back(
        self, rows: torch.Tensor, grids: _Grids, scales: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        order, factors = self._order[:, None].expand_as(rows), self._factors
        wanted = rows.gather(2, order)
        found = torch.empty_like(wanted)
        mask = None if keep is None else keep.gather(2, order)
        for first in range(0, rows.shape[2], _COLUMNS):
            own = slice(first, first + _COLUMNS)
            block, part = _columns_first(wanted[:, :, own]), factors[:, own, own].permute(1, 2, 0)[..., None]
            errors = torch.empty_like(block)
            for place, column in enumerate(block):
                level = grids.nearest((column / scales)[:, :, None])[:, :, 0]
                if mask is not None:
                    level = level * mask[:, :, first + place]
                found[:, :, first + place] = level
                errors[place] = (column - level * scales) / part[place, place]
                block[place + 1 :] -= errors[place] * part[place, place + 1 :]
            wanted[:, :, first + _COLUMNS :] -= errors.permute(1, 2, 0) @ factors[:, own, first + _COLUMNS :]
        return torch.empty_like(found).scatter_(2, order, found)

    def _fitted_scales(self, rows: torch.Tensor, found: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """In closed form; as they were where a row has no level but zero."""
        product = found @ self._systems
        own = (product * found).sum(2)
        return torch.where(own > 0, (product * rows).sum(2) / own.clamp_min(1e-30), scales).clamp_min(1e-30)

    def _descend(
        self,
        rows: torch.Tensor,
        found: torch.Tensor,
        grids: _Grids,
        scales: torch.Tensor,
        keep: torch.Tensor | None,
    ) -> None:
        """One sweep: each weight in turn to the level that is best beside all others."""
        residual = (rows - found * scales[:, :, None]) @ self._systems
        for first in range(0, rows.shape[2], _COLUMNS):
            own = slice(first, first + _COLUMNS)
            block, part = _columns_first(residual[:, :, own]), self._systems[:, own, own].permute(1, 2, 0)[..., None]
            changes = torch.empty_like(block)
            for place, column in enumerate(block):
                old = found[:, :, first + place]
                wanted = old + column / (self._diagonals[:, first + place, None] * scales)
                level = grids.nearest(wanted[:, :, None])[:, :, 0]
                if keep is not None:
                    level = level * keep[:, :, first + place]
                changes[place] = (level - old) * scales
                found[:, :, first + place] = level
                block -= changes[place] * part[place]
            residual -= changes.permute(1, 2, 0) @ self._systems[:, own]


def _columns_first(block: torch.Tensor) -> torch.Tensor:
    return block.permute(2, 0, 1).contiguous()


def _as_held(scales: torch.Tensor) -> torch.Tensor:
    return scales.bfloat16().float()
