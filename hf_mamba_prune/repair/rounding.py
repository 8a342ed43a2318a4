"""Rounding that repairs: levels for all rows at once, each weight taking over what those before it lost.

A weight W (out, in) becomes level x scale of its row x scale of its column, minimising ||(W - V) X||^2 by
H = E[x x^T]: error feedback along the columns, largest inputs first (GPTQ, arXiv 2210.17323), then coordinate descent
from there, and in between the rows' scales in closed form. Rows have codes of a width of their own; under a mask only
kept weights move. Where keeping a weight has a price, the feedback decides which ones are zero, by what that loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_mamba_prune.native.codes import WIDTHS
from hf_mamba_prune.repair.levels import RowLevels

_COLUMNS = 64
"""Columns whose changes are carried over to the others at once."""
_SWEEPS = 2
_ROUNDS = 2
_PRICE_LATER = 0.5
"""Of the price that keeping a weight has in error feedback: about as many are kept in the end as the estimate says."""
_TRIES, _FEW_TRIES = 33, 13
"""Scales that are tried, fewer for an estimate."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight on its grid.

    Args:
        codes: uint8 (out, in), places in the table of levels of the row's width; 0 where nothing is kept.
        keep: bool (out, in), what is held at all; None: everything.
        scales: bfloat16 (out,).
        column_scales: bfloat16 (in,).
        weight: float32 (out, in), level x scale x scale of the column, in that order.
    """

    codes: torch.Tensor
    keep: torch.Tensor | None
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
    prices: torch.Tensor | None = None,
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
        prices: (out,), what keeping a weight of a row costs, in squared errors of its output: those that are not worth
            it become zero, too.
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
    grids = RowLevels(groups.split(bits), masked=keep is not None or prices is not None)
    wanted = _Wanted(
        rows=own,
        keep=None if keep is None else groups.split(keep),
        prices=None if prices is None else groups.split(prices.float().clamp(1e-30, 1e30)),
    )
    levels, scales, kept = solver.round(wanted, grids)
    codes = grids.codes(levels) if kept is None else grids.codes(levels) * kept
    scales, levels = groups.join(scales), groups.join(levels)
    return Rounded(
        codes=groups.join(codes),
        keep=None if kept is None else groups.join(kept),
        scales=scales.bfloat16(),
        column_scales=column_scales,
        weight=levels * scales[:, None] * by,
    )


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
    own, system = _beside_columns(weight, hessian)
    whole = ((own.double() @ system) * own.double()).sum(1)
    solver = _Solver(_damped(system, damping)[None])
    found = [whole]
    for width in WIDTHS[1:]:
        grids = RowLevels(torch.full((1, len(own)), width))
        lost = solver.first_scales(_Wanted(rows=own[None]), grids, _FEW_TRIES).lost[0]
        found.append(torch.minimum(lost.double(), found[-1]))
    return torch.stack(found, 1)


@torch.no_grad()
def kept_errors(
    weight: torch.Tensor, hessian: torch.Tensor, width: int, prices: torch.Tensor, damping: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row would lose under a mask, and how many weights it would keep, as `nearest_errors` has it.

    Args:
        weight: (out, in).
        hessian: (in, in), E[x x^T] over tokens.
        width: of the codes of what is kept.
        prices: (n, out), of keeping a weight, as `round_weight` takes them.
        damping: as there.

    Returns:
        float64 (n, out), about E[((w - v) x)^2]; int64 (n, out).
    """
    own, system = _beside_columns(weight, hessian)
    solver = _Solver(_damped(system, damping)[None])
    grids = RowLevels(torch.full((1, len(own)), width), masked=True)
    found = [
        solver.first_scales(_Wanted(rows=own[None], prices=row[None]), grids, _FEW_TRIES)
        for row in prices.float().clamp(1e-30, 1e30)
    ]
    return torch.cat([one.lost for one in found]).double(), torch.cat([one.kept for one in found])


def _beside_columns(weight: torch.Tensor, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its float64 Hessian with the scales of columns taken out of the one and into the other."""
    by = _column_scales(weight).float()
    return (weight.float() / by).contiguous(), hessian.double() * (by * by[:, None]).double()


def _column_scales(weight: torch.Tensor) -> torch.Tensor:
    """bfloat16 (in,): root mean squares of the columns beside their mean; 1 where a column is zero."""
    sizes = weight.float().square().mean(0).sqrt()
    mean = sizes.mean()
    sizes = torch.where(sizes > 0, (sizes / mean.clamp_min(1e-30)).clamp(1 / 64, 64), 1.0)
    return sizes.bfloat16()


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is rounded.

    Args:
        rows: (groups, rows, in), beside the columns' scales.
        keep: bool, the same shape; None: all.
        prices: (groups, rows), of keeping a weight; None: nothing.
    """

    rows: torch.Tensor
    keep: torch.Tensor | None = None
    prices: torch.Tensor | None = None

    def least(self, scales: torch.Tensor, weights: torch.Tensor) -> torch.Tensor | None:
        """The squares that a level must save to be worth its price: (groups, rows, in)."""
        return None if self.prices is None else (self.prices / scales**2)[:, :, None] / weights


@dataclass(frozen=True, kw_only=True)
class _First:
    """Scales to begin with, what the rows lose by them, and how many weights are kept, each (groups, rows)."""

    scales: torch.Tensor
    lost: torch.Tensor
    kept: torch.Tensor


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
        alone = 1 / self._factors.diagonal(dim1=1, dim2=2).square()
        self._alone = alone.gather(1, torch.argsort(self._order))[:, None]
        """What a squared error of one weight costs when those behind it have made up for it, (groups, 1, in)."""

    def round(self, wanted: _Wanted, grids: RowLevels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Levels, scales (groups, rows) as bfloat16 holds them, and what is kept."""
        scales = _as_held(self.first_scales(wanted, grids).scales)
        found = self._feed_back(wanted, grids, scales)
        for _ in range(_ROUNDS):
            scales = _as_held(self._fitted_scales(wanted.rows, found, scales))
            for _ in range(_SWEEPS):
                self._descend(wanted, found, grids, scales)
        return found, scales, wanted.keep if wanted.prices is None else found != 0

    def first_scales(self, wanted: _Wanted, grids: RowLevels, tries: int = _TRIES) -> _First:
        """Those that cost least when each weight goes to its nearest level, or is zero where that costs less."""
        rows, keep = wanted.rows, wanted.keep
        weights = self._alone.expand_as(rows) if keep is None else self._alone * keep
        size = ((rows.square() * weights).sum(2) / weights.sum(2).clamp_min(1e-30)).sqrt()
        best, least = torch.zeros_like(size), torch.full_like(size, torch.inf)
        lost, kept = least.clone(), torch.zeros_like(size, dtype=torch.long)
        for scales in grids.scales(size, tries):
            levels = grids.nearest(rows / scales[:, :, None], wanted.least(scales, self._alone))
            errors = ((rows - levels * scales[:, :, None]).square() * weights).sum(2)
            count = (levels != 0).sum(2)
            costs = errors if wanted.prices is None else errors + wanted.prices * count
            better = costs < least
            least, best = torch.where(better, costs, least), torch.where(better, scales, best)
            lost, kept = torch.where(better, errors, lost), torch.where(better, count, kept)
        return _First(scales=best, lost=lost, kept=kept)

    def _feed_back(self, wanted: _Wanted, grids: RowLevels, scales: torch.Tensor) -> torch.Tensor:
        order, factors = self._order[:, None].expand_as(wanted.rows), self._factors
        rows = wanted.rows.gather(2, order)
        found = torch.empty_like(rows)
        mask = None if wanted.keep is None else wanted.keep.gather(2, order)
        least = wanted.least(scales, self._alone)
        least = None if least is None else least.gather(2, order)
        for first in range(0, rows.shape[2], _COLUMNS):
            own = slice(first, first + _COLUMNS)
            block, part = _columns_first(rows[:, :, own]), factors[:, own, own].permute(1, 2, 0)[..., None]
            errors = torch.empty_like(block)
            for place, column in enumerate(block):
                at = slice(first + place, first + place + 1)
                worth = None if least is None else least[:, :, at]
                level = grids.nearest((column / scales)[:, :, None], worth)[:, :, 0]
                if mask is not None:
                    level = level * mask[:, :, first + place]
                found[:, :, first + place] = level
                errors[place] = (column - level * scales) / part[place, place]
                block[place + 1 :] -= errors[place] * part[place, place + 1 :]
            rows[:, :, first + _COLUMNS :] -= errors.permute(1, 2, 0) @ factors[:, own, first + _COLUMNS :]
        return torch.empty_like(found).scatter_(2, order, found)

    def _fitted_scales(self, rows: torch.Tensor, found: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """In closed form; as they were where a row has no level but zero."""
        product = found @ self._systems
        own = (product * found).sum(2)
        return torch.where(own > 0, (product * rows).sum(2) / own.clamp_min(1e-30), scales).clamp_min(1e-30)

    def _descend(self, wanted: _Wanted, found: torch.Tensor, grids: RowLevels, scales: torch.Tensor) -> None:
        """One sweep: each weight in turn to the level that is best beside all others."""
        residual = (wanted.rows - found * scales[:, :, None]) @ self._systems
        least = wanted.least(scales, self._alone)
        for first in range(0, found.shape[2], _COLUMNS):
            own = slice(first, first + _COLUMNS)
            block, part = _columns_first(residual[:, :, own]), self._systems[:, own, own].permute(1, 2, 0)[..., None]
            changes = torch.empty_like(block)
            for place, column in enumerate(block):
                at = slice(first + place, first + place + 1)
                old = found[:, :, first + place]
                aim = old + column / (self._diagonals[:, first + place, None] * scales)
                worth = None if least is None else _PRICE_LATER * least[:, :, at]
                level = grids.nearest(aim[:, :, None], worth)[:, :, 0]
                if wanted.keep is not None:
                    level = level * wanted.keep[:, :, first + place]
                changes[place] = (level - old) * scales
                found[:, :, first + place] = level
                block -= changes[place] * part[place]
            residual -= changes.permute(1, 2, 0) @ self._systems[:, own]


def _columns_first(block: torch.Tensor) -> torch.Tensor:
    return block.permute(2, 0, 1).contiguous()


def _as_held(scales: torch.Tensor) -> torch.Tensor:
    return scales.bfloat16().float()
