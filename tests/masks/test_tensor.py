"""Masks have exact counts in a tensor, a row and a group, whatever the scores, and keep the highest."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from given_scores import given_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.masks.budget import allocate
from hf_mamba_prune.masks.tensor import pattern_mask, row_mask, target_mask, tensor_mask
from hf_mamba_prune.models.targets import Target

SEEDS = st.integers(0, 1000)
TARGET = Target(name="layer.weight", component="out_proj", layer=0, kind="linear", tap=None, shape=(6, 8))


def draw_scores(seed, rows, columns):
    """Half of them equal to another one, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator).mul(rows * columns // 2).floor()


def dropped_lies_under_kept(scores, mask):
    """No dropped score is above a kept one, row by row."""
    gone = scores.masked_fill(mask, -1).amax(1)
    stays = scores.masked_fill(~mask, torch.inf).amin(1)
    return bool((gone <= stays).all())


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 9), st.integers(1, 12), st.data())
def test_every_row_loses_exactly_its_count(seed, rows, columns, data):
    scores = draw_scores(seed, rows, columns)
    counts = data.draw(st.lists(st.integers(0, columns), min_size=rows, max_size=rows))
    mask = row_mask(scores, counts, "w", seed)
    assert mask.dtype == torch.bool and (~mask).sum(1).tolist() == counts
    assert dropped_lies_under_kept(scores, mask)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 8), st.integers(1, 5), st.sampled_from([(2, 4), (4, 8), (1, 3), (3, 4), (1, 2)]))
def test_every_group_keeps_exactly_n_of_m_neighbours(seed, rows, groups, pattern):
    kept, of = pattern
    scores = draw_scores(seed, rows, groups * of)
    mask = pattern_mask(scores, kept, of, "w", seed)
    assert mask.shape == scores.shape
    assert (mask.view(-1, of).sum(1) == kept).all()
    assert dropped_lies_under_kept(scores.view(-1, of), mask.view(-1, of))


def test_a_tensor_loses_its_lowest():
    scores = torch.randperm(48, generator=torch.Generator().manual_seed(0)).float().view(6, 8)
    assert torch.equal(tensor_mask(scores, 17, "w", 0), scores >= 17)


def test_pieces_of_a_tall_tensor_join_without_a_seam():
    # More rows than fit into one piece of the ranking: ties must be decided by the position in the whole tensor.
    tall = torch.ones((1 << 20) // 512 + 3, 512)
    mask = row_mask(tall, [256] * len(tall), "w", 0)
    assert (mask.sum(1) == 256).all()
    assert not torch.equal(mask[-3:], mask[:3])
    assert torch.equal(row_mask(tall[:3], [256] * 3, "w", 0), mask[:3])


@pytest.mark.parametrize("make", [lambda s, seed: row_mask(s, [32] * 64, "w", seed),
                                  lambda s, seed: pattern_mask(s, 2, 4, "w", seed),
                                  lambda s, seed: tensor_mask(s, 2048, "w", seed)])  # fmt: skip
def test_constant_scores_lose_about_equally_everywhere_and_by_the_seed(make):
    scores = torch.full((64, 64), 0.125)
    mask = make(scores, 0)
    assert torch.equal(mask, make(scores, 0)) and not torch.equal(mask, make(scores, 1))
    for quarter in (*mask.chunk(4, 0), *mask.chunk(4, 1)):
        assert abs(int(quarter.sum()) - 512) < 100
    columns = mask.view(-1, 4).sum(0)  # no place within a group of four is preferred
    assert ((columns - 512).abs() < 100).all()


@pytest.mark.parametrize(
    "settings",
    [
        dict(sparsity=0.3, allocation="uniform"),
        dict(sparsity=0.3, allocation="per-row"),
        dict(sparsity=0.3, allocation="global"),
        dict(pattern="2:4"),
    ],
)
def test_a_target_gets_the_mask_that_its_config_asks_for(settings):
    config = PruningConfig(**settings)
    scores = draw_scores(5, 6, 8)
    budget = allocate([TARGET], given_scores(lambda target: scores), config, config.sparsity)
    mask = target_mask(TARGET, scores, budget, config)
    assert int((~mask).sum()) == budget.total == round(config.sparsity * 48)
    lost = (~mask).sum(1)
    if config.allocation == "per-row":
        assert lost.tolist() == [3, 3, 2, 2, 2, 2]
    if config.n_of_m:
        assert (mask.view(-1, 4).sum(1) == 2).all()
    if config.allocation == "global":
        assert dropped_lies_under_kept(scores.view(1, -1), mask.view(1, -1))


@pytest.mark.parametrize("allocation", ["uniform", "per-row", "global"])
def test_each_part_of_a_target_loses_its_own_lowest(allocation):
    target = dataclasses.replace(TARGET, component="x_proj", parts=(("x_proj.B", 0, 2), ("x_proj.C", 2, 6)))
    config = PruningConfig(sparsity=0.5, allocation=allocation, component_sparsity={"x_proj.C": 0.25})
    scores = torch.randperm(48, generator=torch.Generator().manual_seed(0)).float().view(6, 8)
    budget = allocate([target], given_scores(lambda target: scores), dataclasses.replace(config, ceiling=1.0), 0.5)
    mask = target_mask(target, scores, budget, config)
    assert [int((~piece).sum()) for piece in (mask[:2], mask[2:])] == [16, 8]
    assert dropped_lies_under_kept(scores[2:], mask[2:])
    if allocation != "per-row":
        assert dropped_lies_under_kept(scores[2:].view(1, -1), mask[2:].view(1, -1))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -1.0])
def test_scores_that_cannot_be_ranked_are_refused(wrong):
    config = PruningConfig(allocation="uniform")
    scores = torch.ones(6, 8)
    budget = allocate([TARGET], given_scores(lambda target: scores), config, 0.5)
    scores[2, 3] = wrong
    with pytest.raises(RuntimeError, match="the fisher scores of layer.weight are not all finite and >= 0"):
        target_mask(TARGET, scores, budget, config)
