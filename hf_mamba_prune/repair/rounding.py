"""Rounding that repairs: levels for all rows at once, each weight taking over what those before it lost.

A weight W (out, in) becomes level x scale of its row x scale of its column, minimising ||(W - V) X||^2 by
H = E[x x^T]: error feedback along the columns, largest inputs first (GPTQ, arXiv 2210.17323), then coordinate descent
from there, and in between the rows' scales in closed form. Rows have codes of a width of their own; under a mask only
kept weights move.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_mamba_prune.native.codes import WIDTHS
from hf_mamba_prune.repair.levels import levels_of_width

_COLUMNS = 64
"""Columns whose changes are carried over to the others at once."""
_SWEEPS = 2
_ROUNDS = 2
_SHARES, _TRIES = (0.7, 3.1), 33
"""Scales that are tried, beside the one that gives weights and levels the same root mean square: even levels of 6 bits
reach to four times that of the weights, those of 2 bits to one and a half."""


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
) -> Rounded:
    """Round a weight so that its outputs stay.

    Args:
        weight: (out, in), what is to be reproduced.
        hessians: (groups, in, in), E[x x^T] over tokens for each range of rows, as `torch.tensor_split` divides them;
            symmetric and positive semidefinite; may be singular.
        bits: uint8 (out,), width of each row's codes; a row of 0 becomes zero.
        damping: added to the diagonal, as a share of its mean.
        keep: bool (out, in), True = kept; None: all. Others become zero.

    Raises:
        RuntimeError: a Hessian is not finite.
    """
    if not torch.isfinite(hessians).all():
        raise RuntimeError("the inputs that a weight is rounded on are not finite.")
    column_scales = _column_scales(weight)
    by = column_scales.float()
    own = (weight.float() / by).contiguous()
    codes, scales = torch.zeros(weight.shape, dtype=torch.uint8), torch.zeros(len(weight))
    levels = torch.zeros_like(own)
    for hessian, group in zip(hessians, torch.arange(len(own)).tensor_split(len(hessians)), strict=True):
        solver = _Solver(_damped(hessian.double() * (by * by[:, None]).double(), damping))
        for width in sorted(set(bits[group].tolist()) - {0}):
            rows = group[bits[group] == width]
            mask = None if keep is None else keep[rows]
            codes[rows], scales[rows], levels[rows] = solver.round(own[rows], levels_of_width(width), mask)
    rounded = levels * scales[:, None] * by
    return Rounded(codes=codes, scales=scales.bfloat16(), column_scales=column_scales, weight=rounded)


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
    solver = _Solver(_damped(system, damping))
    found = [whole]
    for width in WIDTHS[1:]:
        found.append(torch.minimum(solver.first_scales(own, levels_of_width(width), None)[1].double(), found[-1]))
    return torch.stack(found, 1)


def _column_scales(weight: torch.Tensor) -> torch.Tensor:
    """bfloat16 (in,): root mean squares of the columns beside their mean; 1 where a column is zero."""
    sizes = weight.float().square().mean(0).sqrt()
    mean = sizes.mean()
    sizes = torch.where(sizes > 0, (sizes / mean.clamp_min(1e-30)).clamp(1 / 64, 64), 1.0)
    return sizes.bfloat16()


class _Solver:
    """Rounds rows on one Hessian, (in, in) float64, positive definite."""

    def __init__(self, system: torch.Tensor) -> None:
        self._system = system.float()
        self._diagonal = self._system.diagonal().contiguous()
        self._order = torch.argsort(system.diagonal(), descending=True)
        ordered = system[self._order][:, self._order]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
        self._factor = torch.linalg.cholesky(inverse, upper=True).float()

    def round(
        self, rows: torch.Tensor, levels: torch.Tensor, keep: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes uint8 (out, in), scales (out,) as bfloat16 holds them, and levels (out, in)."""
        scales = _as_held(self.first_scales(rows, levels, keep)[0])
        found = self._feed_back(rows, levels, scales, keep)
        for _ in range(_ROUNDS):
            scales = _as_held(self._fitted_scales(rows, found, scales))
            for _ in range(_SWEEPS):
                self._descend(rows, found, levels, scales, keep)
        codes = torch.searchsorted(levels, found).to(torch.uint8)
        if keep is not None:
            codes *= keep
        return codes, scales, found

    def first_scales(
        self, rows: torch.Tensor, levels: torch.Tensor, keep: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those that lose least when each weight goes to its nearest level, (out,), and what they lose."""
        weights = (1 / self._factor.diagonal().square())[torch.argsort(self._order)]
        weights = weights.expand_as(rows) if keep is None else weights * keep
        size = ((rows.square() * weights).sum(1) / weights.sum(1).clamp_min(1e-30)).sqrt()
        size = size / levels.square().mean().sqrt()
        best, least = torch.zeros_like(size), torch.full_like(size, torch.inf)
        for share in torch.linspace(*_SHARES, _TRIES).tolist():
            scales = (size * share).clamp_min(1e-30)
            errors = ((rows - _nearest(rows / scales[:, None], levels) * scales[:, None]).square() * weights).sum(1)
            better = errors < least
            least, best = torch.where(better, errors, least), torch.where(better, scales, best)
        return best, least

    def _feed_back(
        self, rows: torch.Tensor, levels: torch.Tensor, scales: torch.Tensor, keep: torch.Tensor | None
    ) -> torch.Tensor:
        order, factor = self._order, self._factor
        wanted = rows[:, order]
        found = torch.empty_like(wanted)
        mask = None if keep is None else keep[:, order]
        count = len(order)
        for first in range(0, count, _COLUMNS):
            last = min(first + _COLUMNS, count)
            errors = torch.empty(len(rows), last - first)
            for column in range(first, last):
                level = _nearest(wanted[:, column] / scales, levels)
                if mask is not None:
                    level = level * mask[:, column]
                found[:, column] = level
                error = (wanted[:, column] - level * scales) / factor[column, column]
                wanted[:, column + 1 : last] -= error[:, None] * factor[column, column + 1 : last]
                errors[:, column - first] = error
            wanted[:, last:] -= errors @ factor[first:last, last:]
        return found[:, torch.argsort(order)].contiguous()

    def _fitted_scales(self, rows: torch.Tensor, found: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """In closed form; as they were where a row has no level but zero."""
        product = found @ self._system
        own = (product * found).sum(1)
        return torch.where(own > 0, (product * rows).sum(1) / own.clamp_min(1e-30), scales).clamp_min(1e-30)

    def _descend(
        self,
        rows: torch.Tensor,
        found: torch.Tensor,
        levels: torch.Tensor,
        scales: torch.Tensor,
        keep: torch.Tensor | None,
    ) -> None:
        """One sweep: each weight in turn to the level that is best beside all others."""
        residual = (rows - found * scales[:, None]) @ self._system
        for first in range(0, rows.shape[1], _COLUMNS):
            last = min(first + _COLUMNS, rows.shape[1])
            own, block = residual[:, first:last].contiguous(), self._system[first:last, first:last]
            changes = torch.zeros_like(own)
            for column in range(first, last):
                place = column - first
                old = found[:, column]
                level = _nearest(old + own[:, place] / (self._diagonal[column] * scales), levels)
                if keep is not None:
                    level = level * keep[:, column]
                change = (level - old) * scales
                found[:, column] = level
                changes[:, place] = change
                own -= change[:, None] * block[place]
            residual -= changes @ self._system[first:last]


def _as_held(scales: torch.Tensor) -> torch.Tensor:
    return scales.bfloat16().float()


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return levels[torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2)]
