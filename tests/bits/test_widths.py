"""Widths within a budget: it is met, the least sum is found, and what matters more gets more."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_mamba_prune.bits.widths import RowCurves, choose_widths, row_curves
from hf_mamba_prune.native.codes import WIDTHS
from hf_mamba_prune.repair.levels import ERRORS

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
    assert 0 <= bits * 64 * 200 - spent(found["a"]) < 64


def test_the_sum_is_the_least_of_all_that_fit():
    own = curves(1.0, 0.3, 0.05)
    budget = 64 * 6
    found = choose_widths({"a": own}, budget)["a"]

    def loss(widths):
        return sum(float(own.losses[row, width]) for row, width in enumerate(widths))

    # Rows of no bits count for more than their curve says, so they are left out of the comparison.
    fitting = (w for w in itertools.product(range(1, 7), repeat=3) if 64 * sum(w) <= budget)
    assert loss(found.tolist()) == pytest.approx(min(map(loss, fitting)))


def test_a_budget_is_shared_by_what_a_bit_is_worth():
    found = choose_widths({"dull": curves(*[0.01] * 8), "keen": curves(*[1.0] * 8)}, 64 * 8 * 5)
    assert found["keen"].float().mean() > found["dull"].float().mean() + 1


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
    assert found.sizes.tolist() == [bits * 128 for bits in WIDTHS]
