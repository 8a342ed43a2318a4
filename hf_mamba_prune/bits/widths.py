"""Widths of codes and zeros within a budget: bits go where they are worth most.

What rounding a row to some bits costs is what its output loses, as error feedback leaves it, times what a squared
error of the output costs (`bits.sensitivity`). A weight is either held whole, each row in a width of its own, or has a
mask, a bit a weight, and codes of one width where it is not zero: which of its values are worth theirs is a question
of the price, too. These curves are near to convex, so that one price for all bits of the model finds the least sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from hf_mamba_prune.native.codes import WIDTHS
from hf_mamba_prune.repair.levels import ENTROPIES, KEPT_ENTROPIES
from hf_mamba_prune.repair.rounding import kept_errors, nearest_errors

_GONE = 4.0
"""A row that is gone costs so many times what its curve says, as others no longer make up for it."""
_KEPT_WIDTHS = (1, 2, 3)
"""Of codes under masks."""
_PRICES = torch.logspace(-5.5, 2.5, 9, base=2, dtype=torch.float64)
"""Where curves of masks are measured: of the price at which a second bit is worth it for the whole weight."""
_SAMPLE = 64
"""Rows that they are measured on."""
_SPEED = 0.1
"""Share of what a weight loses that a mask must save at the same bits: its kernels take twice the time."""
_MOST_MISSED, _LEAST_DRIFT = 0.1, 0.001
"""Shares of what is left: a weight with zeros may take so much more than was foreseen, and widths are chosen anew when
that many bits were others than foreseen."""


@dataclass(frozen=True, kw_only=True)
class MaskCurves:
    """What one weight costs with zeros, by the width of the others' codes and by the price of a bit.

    Args:
        prices: float64 (n,), rising, in nats per bit.
        losses: float64 (widths, n), expected rise of the loss in nats per token.
        sizes: float64 (widths, n), bits of mask and codes in a file.
    """

    prices: torch.Tensor
    losses: torch.Tensor
    sizes: torch.Tensor

    def at(self, price: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and sizes of the widths, between those measured; no loss is finite below the lowest price."""
        place = int(torch.searchsorted(self.prices, price)) - 1
        if place < 0:
            return torch.full_like(self.losses[:, 0], torch.inf), self.sizes[:, 0]
        if place + 1 == len(self.prices):
            return self.losses[:, -1], self.sizes[:, -1]
        low, high = self.prices[place], self.prices[place + 1]
        share = float((price / low).log() / (high / low).log())
        return (
            torch.lerp(self.losses[:, place], self.losses[:, place + 1], share),
            torch.lerp(self.sizes[:, place], self.sizes[:, place + 1], share),
        )


@dataclass(frozen=True, kw_only=True)
class RowCurves:
    """What the rows of one weight cost at each width.

    Args:
        losses: float64 (out, widths), expected rise of the loss in nats per token.
        sizes: float64 (widths,), bits of a row's codes in a file.
        masks: of the whole weight with zeros; None: it is to have none.
    """

    losses: torch.Tensor
    sizes: torch.Tensor
    masks: MaskCurves | None = None


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How one weight is to be held.

    Args:
        bits: uint8 (out,), width of each row's codes; one for all where zeros are chosen.
        price: of a bit in nats, which tells what is zero; None: nothing is.
        loss: what that is expected to cost, in nats per token.
        size: bits that codes and masks are expected to take in a file.
    """

    bits: torch.Tensor
    price: float | None = None
    loss: float = 0.0
    size: float = 0.0


def row_curves(
    weight: torch.Tensor, hessian: torch.Tensor, rows: torch.Tensor, damping: float = 0.01, zeros: bool = True
) -> RowCurves:
    """The curves of one weight.

    Args:
        weight: (out, in).
        hessian: (in, in), E[x x^T] over tokens.
        rows: (out,), `Sensitivity.rows`.
        damping: as in rounding.
        zeros: whether there may be any.
    """
    losses = nearest_errors(weight, hessian, damping) * rows.double()[:, None] / 2
    sizes = row_sizes(weight.shape[1], WIDTHS)
    second = float((losses[:, 1] - losses[:, 2]).sum() / (sizes[2] - sizes[1]) / len(losses))
    masks = None
    if zeros and second > 0:
        masks = _mask_curves(weight, hessian, rows, second * _PRICES, damping, of_rows=losses[:, 2])
    return RowCurves(losses=losses, sizes=sizes, masks=masks)


def row_sizes(columns: int, widths: Sequence[int]) -> torch.Tensor:
    """float64 (widths,), bits that the codes of a row take in a file, as its levels have of entropy."""
    return columns * torch.tensor([ENTROPIES[width] for width in widths], dtype=torch.float64)


def _mask_curves(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    rows: torch.Tensor,
    prices: torch.Tensor,
    damping: float,
    *,
    of_rows: torch.Tensor,
) -> MaskCurves:
    """From rows of all ranks; what they lose stands for all as `of_rows`, losses in 2 bits, do of them and of all."""
    some = of_rows.argsort()[torch.linspace(0, len(weight) - 1, min(_SAMPLE, len(weight))).long()]
    share, own = len(weight) / len(some), rows[some].double()
    weights = float(of_rows.sum() / of_rows[some].sum().clamp_min(1e-30))
    losses, sizes = [], []
    for width in _KEPT_WIDTHS:
        errors, kept = kept_errors(weight[some], hessian, width, kept_prices(prices, width, own), damping)
        losses.append(weights * (errors * own / 2).sum(1))
        sizes.append(_mask_sizes(share * kept.sum(1).double(), weight.numel(), width))
    return MaskCurves(prices=prices, losses=torch.stack(losses), sizes=torch.stack(sizes))


def _mask_sizes(kept: torch.Tensor, weights: int, width: int) -> torch.Tensor:
    """float64 (n,), bits of a mask of so many weights and of the codes of those kept, (n,)."""
    shares = (kept / weights).clamp(1e-9, 1 - 1e-9)
    entropies = -(shares * shares.log2() + (1 - shares) * (1 - shares).log2())
    return weights * entropies + KEPT_ENTROPIES[width] * kept


def lowest_price(fits: Callable[[float], bool], highest: float, closeness: float) -> float:
    """The lowest price of a bit that fits, down to 1e-20 of the highest one, which is the answer where none does.

    Args:
        fits: true from some price on.
        highest: above 0.
        closeness: a ratio above 1; what the answer may be too high by.
    """
    low, high = 1e-20 * highest, highest
    while high / low > closeness:
        price = (low * high) ** 0.5
        low, high = (low, price) if fits(price) else (price, high)
    return high


def kept_prices(prices: torch.Tensor, width: int, rows: torch.Tensor) -> torch.Tensor:
    """What a kept weight of each row costs, as `round_weight` takes it: (n, out).

    Args:
        prices: (n,), of a bit, in nats.
        width: bits of a kept weight.
        rows: (out,), `Sensitivity.rows`.
    """
    return 2 * width * prices[:, None] / rows.double().clamp_min(1e-30)


def choose_widths(curves: Mapping[str, RowCurves], bits: int) -> dict[str, Widths]:
    """How each weight is held, so that codes and masks take at most `bits` in all and as many as that allows.

    Args:
        curves: of all weights that share the budget, by name.
        bits: of all their codes and masks.

    Returns:
        By name.

    Raises:
        ValueError: fewer bits than none.
    """
    return _priced_widths(curves, bits)[1]


def _priced_widths(curves: Mapping[str, RowCurves], bits: int) -> tuple[float, dict[str, Widths]]:
    """The price of a bit beside them."""
    if bits < 0:
        raise ValueError(f"scales and tables alone take more than the budget: {-bits:,} bits are missing.")
    lagrangian = _Lagrangian(curves)
    price = lagrangian.price(bits)
    return price, lagrangian.widths(price, bits)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The best at a price: a width for each row, and by weight the place of the masked one's width; -1: no mask."""

    rows: torch.Tensor
    masks: list[int]
    size: float


class _Lagrangian:
    """All weights that share a budget, asked what they would take at a price."""

    def __init__(self, curves: Mapping[str, RowCurves]) -> None:
        self._curves = curves
        self._counts = [len(own.losses) for own in curves.values()]
        self._owners = torch.arange(len(curves)).repeat_interleave(torch.tensor(self._counts))
        self._losses = torch.cat([own.losses for own in curves.values()])
        self._sizes = torch.cat([own.sizes.expand(len(own.losses), -1) for own in curves.values()])
        self._worth = torch.cat([_GONE * self._losses[:, :1], self._losses[:, 1:]], 1)
        self.highest = float(self._worth.max())

    def at(self, price: float) -> _Choice:
        """What each takes, all together."""
        costs = self._worth + price * self._sizes
        rows = costs.argmin(1)
        whole = self._by_weight((costs - _SPEED * self._losses).gather(1, rows[:, None])[:, 0])
        sizes = self._by_weight(self._sizes.gather(1, rows[:, None])[:, 0].double())
        masks = [-1] * len(self._curves)
        for place, own in enumerate(self._curves.values()):
            if own.masks is not None:
                losses, bits = own.masks.at(price)
                cost, best = (losses + price * bits).min(0)
                if cost < whole[place]:
                    masks[place], sizes[place] = int(best), bits[best]
        return _Choice(rows=rows, masks=masks, size=float(sizes.sum()))

    def price(self, bits: int) -> float:
        """Of a bit, in nats, at which all take at most so many; the least there is."""
        return lowest_price(lambda price: self.at(price).size <= bits, self.highest + 1e-30, 1 + 1e-6)

    def _by_weight(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(self._curves), dtype=rows.dtype).index_add_(0, self._owners, rows)

    def widths(self, price: float, bits: int) -> dict[str, Widths]:
        """At a price, and what is left of the bits spent on rows without masks."""
        answer = self.at(price)
        whole = torch.tensor(answer.masks)[self._owners] < 0
        _spend_rest(self._worth[whole], self._sizes[whole], answer.rows, whole, bits - answer.size)
        found = {}
        for (name, own), rows, mask in zip(
            self._curves.items(), answer.rows.split(self._counts), answer.masks, strict=True
        ):
            widths = torch.tensor(WIDTHS, dtype=torch.uint8)[rows]
            if mask < 0:
                loss = float(own.losses.gather(1, rows[:, None]).sum())
                found[name] = Widths(bits=widths, loss=loss, size=float(own.sizes[rows].sum()))
            else:
                assert own.masks is not None  # it was chosen
                losses, sizes = own.masks.at(price)
                found[name] = Widths(
                    bits=torch.full_like(widths, _KEPT_WIDTHS[mask]),
                    price=price,
                    loss=float(losses[mask]),
                    size=float(sizes[mask]),
                )
        return found


def _spend_rest(
    losses: torch.Tensor, sizes: torch.Tensor, rows: torch.Tensor, whole: torch.Tensor, left: float
) -> None:
    """One width more for the rows that gain most by a bit, while there are bits.

    Args:
        losses, sizes: (rows that are `whole`, widths).
        rows: of all rows the width, written to.
        whole: bool, which of them have no mask.
        left: bits.
    """
    choice = rows[whole]
    wider = (choice + 1).clamp_max(losses.shape[1] - 1)
    gain = losses.gather(1, choice[:, None]) - losses.gather(1, wider[:, None])
    cost = sizes.gather(1, wider[:, None]) - sizes.gather(1, choice[:, None])
    worth = torch.where(cost > 0, gain / cost.clamp_min(1), -1.0)[:, 0]
    costs = cost[:, 0].tolist()
    least = min((own for own in costs if own > 0), default=left + 1)
    for row in worth.argsort(descending=True).tolist():
        if left < least:
            break
        if 0 < costs[row] <= left:
            choice[row] += 1
            left -= costs[row]
    rows[whole] = choice


class BitBudget:
    """The widths of weights one after the other: what one takes in a file is known when it is rounded, not before.

    The last one has no zeros, and is held in fewer bits where it takes more than is left, so that the sum is met.

    Args:
        curves: of all, by name, in the order that they are rounded in.
        bits: of all their codes and masks.

    Raises:
        ValueError: as `choose_widths`.
    """

    def __init__(self, curves: Mapping[str, RowCurves], bits: int) -> None:
        last = list(curves)[-1:]
        self._curves = {**curves, **{name: replace(curves[name], masks=None) for name in last}}
        self._left, self._drift = bits, 0.0
        self.price, self._widths = _priced_widths(self._curves, bits)
        """The price is that of a bit, in nats per token, before any of them was rounded."""
        self.expected = sum(own.loss for own in self._widths.values())
        """Rise of the loss, in nats per token."""

    def widths(self, name: str) -> Widths:
        """How the next one is to be held."""
        return self._widths[name]

    def spend(self, name: str, bits: int) -> bool:
        """Take the bits of a weight that was rounded; what is left is for the others.

        Returns:
            Whether that may be; otherwise there are not so many, or the others would miss them, and the weight is to
            be held as it is chosen now.
        """
        own, curves = self._widths[name], self._curves[name]
        behind = self._left - own.size
        if own.price is not None and bits - own.size > _MOST_MISSED * behind:
            self._curves[name] = replace(curves, masks=None)
            self._choose()
            return False
        if len(self._curves) == 1 and bits > self._left and own.size > 0:
            self._curves[name] = replace(curves, sizes=curves.sizes * (bits / own.size))
            self._choose()
            return False
        self._drift += abs(bits - own.size)
        del self._curves[name]
        self._left -= bits
        if self._drift > _LEAST_DRIFT * self._left or len(self._curves) == 1:
            self._choose()
        return True

    def _choose(self) -> None:
        self._drift = 0.0
        self._widths = choose_widths(self._curves, max(self._left, 0)) if self._curves else {}
