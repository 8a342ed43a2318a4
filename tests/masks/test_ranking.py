"""The radix selection finds exactly the k lowest, as a sort would, with ties in a seeded order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mamba_prune.masks.ranking import Keeper, lowest, tie_order
from hf_mamba_prune.seeds import name_seed

TINY, HUGE = float(np.float32(1e-45)), float(np.finfo(np.float32).max)
FEW = st.sampled_from([0.0, TINY, 1e-40, 0.5, 1.0, 1.0000001, 1e30, HUGE])
ANY = st.floats(0, HUGE, width=32, allow_subnormal=True)
TENSORS = st.lists(st.lists(FEW | ANY, min_size=1, max_size=40), min_size=1, max_size=4)


def masks_of(tensors, count, seed=0):
    def visit():
        return [(f"t{i}", tensor) for i, tensor in enumerate(tensors)]

    keeper = Keeper(lowest(visit, count, sum(t.numel() for t in tensors), seed))
    return [keeper.keep(name, tensor) for name, tensor in visit()]


def sorted_masks(tensors, count, seed=0):
    """The same by sorting all (value, tie order) of all tensors."""
    everything = []
    for i, tensor in enumerate(tensors):
        order = tie_order(torch.arange(tensor.numel()), f"t{i}", seed).tolist()
        everything += [(v, o, i, j) for j, (v, o) in enumerate(zip(tensor.flatten().tolist(), order, strict=True))]
    masks = [torch.ones(tensor.numel(), dtype=torch.bool) for tensor in tensors]
    for _, _, i, j in sorted(everything)[:count]:
        masks[i][j] = False
    return [mask.view(tensor.shape) for mask, tensor in zip(masks, tensors, strict=True)]


@settings(deadline=None, max_examples=80)
@given(TENSORS, st.data())
def test_the_lowest_of_several_tensors_are_those_of_a_sort(values, data):
    tensors = [torch.tensor(v, dtype=torch.float32) for v in values]
    count = data.draw(st.integers(0, sum(map(len, values))))
    seed = data.draw(st.integers(0, 3))
    masks = masks_of(tensors, count, seed)
    assert sum(int((~mask).sum()) for mask in masks) == count
    for found, wanted in zip(masks, sorted_masks(tensors, count, seed), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 3333, 5999, 6000])
def test_counts_at_the_edges_with_bf16_ties(count):
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.rand(shape, generator=generator).bfloat16().float() for shape in [(40, 50), (100, 30), (1000,)]]
    masks = masks_of(tensors, count)
    assert [mask.shape for mask in masks] == [tensor.shape for tensor in tensors]
    assert sum(int((~mask).sum()) for mask in masks) == count
    if 0 < count < 6000:
        gone = max(float(t[~m].max()) for t, m in zip(tensors, masks, strict=True) if not m.all())
        stays = min(float(t[m].min()) for t, m in zip(tensors, masks, strict=True) if m.any())
        assert gone <= stays


def test_a_tensor_that_is_not_contiguous_keeps_its_places():
    scores = torch.arange(12.0).view(3, 4).T
    (mask,) = masks_of([scores], 5)
    assert torch.equal(mask, scores >= 5)


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="11 scores were asked for, but there are only 10"):
        masks_of([torch.rand(10)], 11)


def test_equal_scores_go_by_a_seeded_order_and_not_by_position():
    (first,), (again,), (other,) = (masks_of([torch.ones(64, 64)], 2048, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for mask in (first, other):
        for quarter in (*mask.chunk(4, 0), *mask.chunk(4, 1)):
            assert abs(int(quarter.sum()) - 512) < 100
    assert 0.4 < (first == other).float().mean() < 0.6  # independent of each other
    masks = masks_of([torch.ones(2000), torch.ones(1000), torch.ones(1000)], 2000)
    assert [abs(int(m.sum()) - m.numel() // 2) < 80 for m in masks] == [True] * 3
    assert not torch.equal(masks[1], masks[2])  # the name counts


def test_the_tie_order_is_the_same_on_every_machine():
    def mixed(position, name, seed):
        word = (1 << 64) - 1
        x = ((position + 1) * 0x9E3779B97F4A7C15 + name_seed(name, seed) * 2 + 1) & word
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
        return (x ^ (x >> 31)) >> 4

    positions = torch.tensor([0, 1, 2, 1_000_003, 2**40])
    assert tie_order(positions, "a.weight", 7).tolist() == [mixed(p, "a.weight", 7) for p in positions.tolist()]
    assert name_seed("a.weight", 7) == 4764742820431431359
    many = tie_order(torch.arange(100_000), "b.weight", 0)
    assert len(many.unique()) == 100_000 and 0 <= many.min() and many.max() < 1 << 60


def misleading(size: int) -> torch.Tensor:
    values = torch.rand(size)
    values[::251] = 5.0  # what the sample sees
    return values


@pytest.mark.parametrize(
    "make",
    [
        torch.rand,
        lambda size: (torch.rand(size) * 2**16).round(),
        lambda size: torch.rand(size).bfloat16().float(),
        misleading,
    ],
    ids=["few ties", "some ties", "many ties", "misleading sample"],
)
def test_many_scores_are_selected_as_few_are(make):
    torch.manual_seed(0)
    tensors = [make(size) for size in (900_000, 50_000, 700_001)]
    count = 1_200_000
    order = torch.cat([tie_order(torch.arange(t.numel()), f"t{i}", 0) for i, t in enumerate(tensors)]).numpy()
    lowest_of_all = np.lexsort((order, torch.cat(tensors).numpy()))[:count]
    expected = torch.ones(1_650_001, dtype=torch.bool)
    expected[torch.from_numpy(lowest_of_all)] = False
    assert torch.equal(torch.cat(masks_of(tensors, count)), expected)
