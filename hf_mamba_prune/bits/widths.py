"""Widths of codes within a budget: each row gets the bits that are worth most there.

What rounding a row to some bits costs is what its output loses, as error feedback leaves it, times what a squared
error of the output costs (`bits.sensitivity`). These curves are near to convex, so that one price for all bits of the
model finds the least sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hf_mamba_prune.native.codes import WIDTHS, bytes_of_rows
from hf_mamba_prune.repair.rounding import nearest_errors

_GONE = 4.0


@dataclass(frozen=True, kw_only=True)
class RowCurves:
    """What the rows of one weight cost at each width.

    Args:
        losses: float64 (out, widths), expected rise of the loss in nats per token.
        sizes: int64 (widths,), bits of a row's codes.
    """

    losses: torch.Tensor
    sizes: torch.Tensor


def row_curves(weight: torch.Tensor, hessian: torch.Tensor, rows: torch.Tensor, damping: float = 0.01) -> RowCurves:
    """The curves of one weight.

    Args:
        weight: (out, in).
        hessian: (in, in), E[x x^T] over tokens.
        rows: (out,), `Sensitivity.rows`.
        damping: as in rounding.
    """
    losses = nearest_errors(weight, hessian, damping) * rows.double()[:, None] / 2
    sizes = torch.stack([8 * bytes_of_rows(weight.shape[1], torch.tensor([bits])) for bits in WIDTHS])[:, 0]
    return RowCurves(losses=losses, sizes=sizes)


def choose_widths(curves: Mapping[str, RowCurves], bits: int) -> dict[str, torch.Tensor]:
    """The width of each row, whose codes take at most `bits` in all and as many as that allows.

    Args:
        curves: of all weights that share the budget, by name.
        bits: of all their codes.

    Returns:
        By name, uint8 (out,).

    Raises:
        ValueError: fewer bits than none.
    """
    if bits < 0:
        raise ValueError(f"scales and tables alone take more than the budget: {-bits:,} bits are missing.")
    losses = torch.cat([own.losses for own in curves.values()])
    # A row that is gone costs more than its curve says, as others no longer make up for it.
    losses = torch.cat([_GONE * losses[:, :1], losses[:, 1:]], 1)
    sizes = torch.cat([own.sizes.expand(len(own.losses), -1) for own in curves.values()])
    low, high = 1e-40, float(losses.max()) + 1.0  # prices of a bit, in nats
    while high / low > 1 + 1e-9:
        price = (low * high) ** 0.5
        choice = (losses + price * sizes).argmin(1)
        if int(sizes.gather(1, choice[:, None]).sum()) > bits:
            low = price
        else:
            high = price
    choice = (losses + high * sizes).argmin(1)
    _spend_rest(losses, sizes, choice, bits)
    chosen = torch.tensor(WIDTHS, dtype=torch.uint8)[choice].split([len(own.losses) for own in curves.values()])
    return dict(zip(curves, chosen, strict=True))


def _spend_rest(losses: torch.Tensor, sizes: torch.Tensor, choice: torch.Tensor, bits: int) -> None:
    """One width more for the rows that gain most by a bit, while there are bits; `choice` is written to."""
    left = bits - int(sizes.gather(1, choice[:, None]).sum())
    wider = (choice + 1).clamp_max(losses.shape[1] - 1)
    gain = losses.gather(1, choice[:, None]) - losses.gather(1, wider[:, None])
    cost = sizes.gather(1, wider[:, None]) - sizes.gather(1, choice[:, None])
    worth = torch.where(cost > 0, gain / cost.clamp_min(1), -1.0)[:, 0]
    for row in worth.argsort(descending=True).tolist():
        if 0 < int(cost[row]) <= left:
            choice[row] += 1
            left -= int(cost[row])
