"""Widths within a budget: it is met, the least sum is found, and what matters more gets more."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_mamba_prune.bits.widths import BitBudget, MaskCurves, RowCurves, choose_widths, kept_prices, row_curves
from hf_mamba_prune.native.codes import WIDTHS, plane_bytes
from hf_mamba_prune.repair.levels import ENTROPIES, ERRORS
from hf_mamba_prune.repair.rounding import round_weight

SIZES = torch.tensor([64 * bits for bits in WIDTHS])


def curves(*scales: float) -> RowCurves:
    """Rows that lose what a normal variable does, times a scale."""
    errors = torch.tensor([ERRORS[bits] for bits in WIDTHS], dtype=torch.float64)
    return RowCurves(losses=torch.tensor(scales, dtype=torch.float64)[:, None] * errors, sizes=SIZES)


def spent(widths: torch.Tensor) -> int:
    return int(SIZES[widths.long()].sum())


@pytest.mark.parametrize("bits", [1.0, 1.7, 2.3, 3.1, 5.0])
def test_the_budget_is_met_and_never_passed(bits):
    own = curves(*torch.logspace(-3, 0, 200).tolist())
    found = choose_widths({"a": own}, int(bits * 64 * 200))
    assert 0 <= bits * 64 * 200 - spent(found["a"].bits) < 64


def test_the_sum_is_the_least_of_all_that_fit():
    own = curves(1.0, 0.3, 0.05)
    budget = 64 * 6
    found = choose_widths({"a": own}, budget)["a"].bits

    def loss(widths):
        return sum(float(own.losses[row, width]) for row, width in enumerate(widths))

    # Rows of no bits count for more than their curve says, so they are left out of the comparison.
    fitting = (w for w in itertools.product(range(1, 7), repeat=3) if 64 * sum(w) <= budget)
    assert loss(found.tolist()) == pytest.approx(min(map(loss, fitting)))


def test_a_budget_is_shared_by_what_a_bit_is_worth():
    found = choose_widths({"dull": curves(*[0.01] * 8), "keen": curves(*[1.0] * 8)}, 64 * 8 * 5)
    assert found["keen"].bits.float().mean() > found["dull"].bits.float().mean() + 1


def test_less_than_nothing_is_refused():
    with pytest.raises(ValueError, match="scales and tables alone"):
        choose_widths({"a": curves(1.0)}, -5)


def test_curves_fall_with_the_bits_and_follow_rows_and_inputs():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 80, generator=generator)
    inputs = torch.randn(400, 80, generator=generator)
    hessian = (inputs.T @ inputs / 400).double()
    rows = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0, 1.0])
    found = row_curves(weight, hessian, rows)
    assert (found.losses.diff(dim=1) <= 0).all()
    assert torch.equal(found.losses[4], torch.zeros(len(WIDTHS), dtype=torch.float64))
    torch.testing.assert_close(row_curves(weight, hessian, 2 * rows).losses, 2 * found.losses)
    assert found.sizes.tolist() == [80 * ENTROPIES[bits] for bits in WIDTHS]


def masked(own: RowCurves, share: float) -> RowCurves:
    """With zeros, a share of what codes lose at the same size, whatever the price."""
    prices = torch.logspace(-9, 3, 200, dtype=torch.float64)
    whole = [choose_widths({"a": own}, int(64 * len(own.losses) * bits))["a"] for bits in (1.5, 2.0, 2.5)]
    costs = torch.stack([one.loss * share + prices * one.size for one in whole])
    best = costs.argmin(0)
    losses = torch.tensor([one.loss * share for one in whole], dtype=torch.float64)[best]
    sizes = torch.tensor([one.size for one in whole], dtype=torch.float64)[best]
    return RowCurves(
        losses=own.losses, sizes=own.sizes, masks=MaskCurves(prices=prices, losses=losses[None], sizes=sizes[None])
    )


def test_zeros_are_chosen_where_they_lose_less_and_nowhere_else():
    plain = curves(*torch.logspace(-1, 0, 40).tolist())
    both = {"good": masked(plain, 0.6), "bad": masked(plain, 1.6)}
    found = choose_widths(both, 64 * 40 * 2 * 2)
    assert found["good"].price is not None and found["bad"].price is None
    assert set(found["good"].bits.tolist()) == {1}
    assert sum(own.size for own in found.values()) <= 64 * 40 * 2 * 2
    without = choose_widths({"good": plain, "bad": plain}, 64 * 40 * 2 * 2)
    assert sum(own.loss for own in found.values()) < sum(own.loss for own in without.values())


def test_zeros_must_save_more_than_a_little_as_they_are_slower():
    plain = curves(*torch.logspace(-1, 0, 40).tolist())
    found = choose_widths({"little": masked(plain, 0.96), "more": masked(plain, 0.8)}, 64 * 40 * 2 * 2)
    assert found["little"].price is None and found["more"].price is not None


def test_what_zeros_did_not_take_is_spent_on_the_weights_behind():
    plain = curves(*torch.logspace(-1, 0, 40).tolist())
    bits = 64 * 40 * 2 * 3
    budget = BitBudget({name: masked(plain, 0.6) for name in "abc"}, bits)
    first, expected = budget.widths("a"), budget.widths("b").size
    assert first.price is not None
    budget.spend("a", int(first.size) // 2)
    second = budget.widths("b")
    assert second.size + budget.widths("c").size > expected
    budget.spend("b", int(second.size))
    last = budget.widths("c")
    assert last.price is None  # so that its size is exact
    most = plain.sizes[-1] * len(plain.losses)
    left = bits - int(first.size) // 2 - int(second.size) - last.size
    assert 0 <= left and (left < 64 or last.size == most)


def test_a_weight_that_takes_more_than_was_foreseen_is_held_without_zeros_where_others_would_miss_it():
    plain, small = curves(*torch.logspace(-1, 0, 40).tolist()), curves(1.0, 1.0)
    bits = 64 * 42 * 2
    budget = BitBudget({"big": masked(plain, 0.6), "small": small}, bits)
    first = budget.widths("big")
    assert first.price is not None
    assert not budget.spend("big", int(1.2 * first.size))
    again = budget.widths("big")
    assert again.price is None and budget.spend("big", int(again.size))
    assert budget.widths("small").bits.min() > 0 and again.size + budget.widths("small").size <= bits


def test_the_last_weight_is_held_in_fewer_bits_until_it_fits():
    """Its entropy is higher than was expected."""
    budget = BitBudget({"first": curves(*[1.0] * 20), "last": curves(*[1.0] * 20)}, 64 * 40 * 3)
    assert budget.spend("first", int(budget.widths("first").size))
    left, tries = 64 * 40 * 3 - 64 * 20 * 3, 0
    while not budget.spend("last", taken := int(1.1 * spent(budget.widths("last").bits))):
        tries += 1
    assert tries and 0.9 * left < taken <= left


def test_curves_of_masks_tell_sizes_that_rounding_has_and_fall_with_the_price():
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(64, 128, generator=generator), torch.ones(64)
    inputs = torch.randn(800, 128, generator=generator)
    hessian = (inputs.T @ inputs / 800).double()
    masks = row_curves(weight, hessian, rows).masks
    assert masks is not None
    assert (masks.sizes.diff(dim=1) <= 0).all() and (masks.losses.diff(dim=1) >= 0).all()
    low = float(masks.prices[0])
    assert torch.isinf(masks.at(low / 2)[0]).all() and torch.isfinite(masks.at(2 * low)[0]).all()
    price = float(masks.prices[4])
    losses, sizes = masks.at(price)
    for place, width in enumerate((1, 2, 3)):
        prices = kept_prices(torch.tensor([price]), width, rows)[0]
        bits = torch.full((64,), width, dtype=torch.uint8)
        found = round_weight(weight, hessian[None], bits, prices=prices)
        assert found.keep is not None
        size = 8 * 64 * (plane_bytes(128) - 1) + width * int(found.keep.sum())
        assert size == pytest.approx(float(sizes[place]), rel=0.1)
        change = (weight - found.weight).double()
        assert float(((change @ hessian) * change).sum()) / 2 == pytest.approx(float(losses[place]), rel=0.3)


def test_curves_of_masks_know_the_few_rows_that_matter():
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(400, 64, generator=generator), torch.full((400,), 1e-3)
    rows[[7, 201, 333]] = 10.0  # most samples of 64 rows have none of them
    hessian = torch.eye(64, dtype=torch.float64)
    masks = row_curves(weight, hessian, rows).masks
    assert masks is not None
    price = float(masks.prices[4])
    prices = kept_prices(torch.tensor([price]), 2, rows)[0]
    bits = torch.full((400,), 2, dtype=torch.uint8)
    found = round_weight(weight, hessian[None], bits, prices=prices)
    loss = float(((weight - found.weight).square().sum(1) * rows / 2).sum())
    assert loss == pytest.approx(float(masks.at(price)[0][1]), rel=0.5)
