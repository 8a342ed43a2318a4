"""Rounding with repair: on the grid, better than nearest, exact where it must be, and only where a mask keeps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hf_mamba_prune.native.codes import LEVELS, levels_of
from hf_mamba_prune.repair.levels import (
    ENTROPIES,
    ERRORS,
    KEPT_ENTROPIES,
    RowLevels,
    level_table,
    levels_of_width,
)
from hf_mamba_prune.repair.rounding import round_weight


def problem(rows: int = 12, columns: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the Hessian of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(500, columns, generator=generator) @ (torch.eye(columns) + mixing)
    return torch.randn(rows, columns, generator=generator), (inputs.T @ inputs / 500)[None].double()


def loss(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    change = (weight - rounded).double()
    return float(((change @ hessian[0]) * change).sum())


def all_rows(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.full((len(weight),), bits, dtype=torch.uint8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_the_weight_is_what_codes_and_scales_say(bits):
    weight, hessian = problem()
    found = round_weight(weight, hessian, all_rows(weight, bits))
    levels = levels_of(found.codes, bits, level_table()).float()
    assert torch.equal(found.weight, levels * found.scales.float()[:, None] * found.column_scales.float())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_repair_loses_less_than_the_nearest_levels_do(bits):
    weight, hessian = problem()
    found = round_weight(weight, hessian, all_rows(weight, bits))
    alone = round_weight(weight, torch.eye(weight.shape[1])[None], all_rows(weight, bits))
    assert loss(weight, found.weight, hessian) < 0.8 * loss(weight, alone.weight, hessian)


def test_more_bits_lose_less_and_none_are_zero():
    weight, hessian = problem()
    found = [round_weight(weight, hessian, all_rows(weight, bits)).weight for bits in range(7)]
    losses = [loss(weight, own, hessian) for own in found]
    assert losses == sorted(losses, reverse=True)
    assert not found[0].any()


def test_rows_of_several_widths_are_each_what_they_would_be_alone():
    weight, hessian = problem()
    bits = torch.arange(len(weight), dtype=torch.uint8) % 4 + 1
    mixed = round_weight(weight, hessian, bits).weight
    for width in (1, 2, 3, 4):
        own = round_weight(weight, hessian, all_rows(weight, width)).weight
        torch.testing.assert_close(mixed[bits == width], own[bits == width])


def test_each_group_of_rows_is_rounded_on_its_own_hessian():
    weight, first = problem()
    second = problem(seed=1)[1]
    both = round_weight(weight, torch.cat([first, second]), all_rows(weight, 3)).weight
    torch.testing.assert_close(both[:6], round_weight(weight, first, all_rows(weight, 3)).weight[:6])
    torch.testing.assert_close(both[6:], round_weight(weight, second, all_rows(weight, 3)).weight[6:])


def test_under_a_mask_only_kept_weights_are_levels_and_make_up_for_the_others():
    weight, hessian = problem()
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    found = round_weight(weight, hessian, all_rows(weight, 3), keep=keep)
    assert torch.equal(found.weight != 0, keep)
    alone = round_weight(weight, torch.eye(weight.shape[1])[None], all_rows(weight, 3), keep=keep)
    assert loss(weight, found.weight, hessian) < 0.7 * loss(weight, alone.weight, hessian)


def test_a_price_makes_zeros_of_the_weights_that_are_not_worth_it():
    weight, hessian = problem(rows=24, columns=130)
    bits = all_rows(weight, 2)
    shares = []
    for price in (1e-6, 0.1, 0.5, 1e9):
        found = round_weight(weight, hessian, bits, prices=torch.full((24,), price))
        assert found.keep is not None and torch.equal(found.keep, found.weight != 0)
        levels = levels_of(found.codes, 2, level_table(masked=True)).float() * found.keep
        assert torch.equal(found.weight, levels * found.scales.float()[:, None] * found.column_scales.float())
        shares.append(float(found.keep.float().mean()))
    # Without a price, too, zero is the nearest level of some.
    assert 0.6 < shares[0] < 0.8 and shares == sorted(shares, reverse=True) and shares[-1] == 0


def test_zeros_chosen_in_rounding_lose_less_than_those_of_a_mask_before_it():
    weight, hessian = problem(rows=24, columns=130)
    bits = all_rows(weight, 2)
    chosen = round_weight(weight, hessian, bits, prices=torch.full((24,), 0.3))
    assert chosen.keep is not None
    kept = int(chosen.keep.sum())
    smallest = weight.abs().flatten().topk(kept).values[-1]
    before = round_weight(weight, hessian, bits, keep=weight.abs() >= smallest)
    assert loss(weight, chosen.weight, hessian) < 0.95 * loss(weight, before.weight, hessian)


def test_a_price_is_a_rows_own():
    weight, hessian = problem()
    prices = torch.tensor([1e-6, 1e9]).repeat(6)
    keep = round_weight(weight, hessian, all_rows(weight, 2), prices=prices).keep
    assert keep is not None and keep[::2].float().mean() > 0.6 and not keep[1::2].any()


def test_inputs_and_weights_that_are_never_there_do_no_harm():
    weight, hessian = problem()
    weight[2], weight[:, 5] = 0, 0
    hessian[:, 7], hessian[:, :, 7] = 0, 0
    found = round_weight(weight, hessian, all_rows(weight, 2)).weight
    assert torch.isfinite(found).all()
    assert torch.isfinite(round_weight(weight, hessian * 0, all_rows(weight, 2)).weight).all()


def test_inputs_that_are_not_finite_are_refused():
    weight, hessian = problem()
    with pytest.raises(RuntimeError, match="not finite"):
        round_weight(weight, hessian * torch.nan, all_rows(weight, 2))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_errors_and_entropies_are_those_of_a_normal_variable(bits, masked):
    """Under a mask, of what is left of it without the 45 % nearest to zero."""
    x = torch.special.ndtri((torch.arange(100_000) + 0.5) / 100_000).float()
    x = x[x.abs() > 0.5978] if masked else x
    grids, found = RowLevels(torch.full((1, 1), bits), masked), []
    for scales in grids.scales(x.square().mean().sqrt().view(1, 1), 33):
        levels = grids.nearest(x.view(1, 1, -1) / scales[:, :, None])
        shares = torch.bincount(grids.codes(levels).flatten().long()).double() / len(x)
        entropy = float(-(shares * shares.clamp_min(1e-30).log2()).sum())
        found.append((float((x - levels * scales[:, :, None]).square().mean()), entropy))
    error, entropy = min(found)
    if not masked:
        assert error == pytest.approx(ERRORS[bits], rel=0.03) and entropy == pytest.approx(ENTROPIES[bits], abs=0.03)
    elif bits in KEPT_ENTROPIES:
        assert entropy == pytest.approx(KEPT_ENTROPIES[bits], abs=0.1)


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_even_levels_lose_what_the_best_steps_lose_at_their_entropy(bits):
    """At the least scale that may be, error x 4^entropy is that of fine even steps, which is the best of all."""
    assert ERRORS[bits] * 4 ** ENTROPIES[bits] == pytest.approx(2 * math.pi * math.e / 12, rel=0.08)


def test_levels_rise():
    for bits, masked in itertools.product((1, 2, 3, 4, 5, 6), (False, True)):
        table = level_table(masked)
        assert len(table) == LEVELS
        if not (masked and bits == 5):
            assert (levels_of_width(bits, table).diff() > 0).all()
