"""Budgets add up exactly to what was asked for, wherever they put it."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from given_scores import given_scores
from hypothesis import given
from hypothesis import strategies as st

from hf_mamba_prune.config import ALLOCATION_NAMES, PruningConfig
from hf_mamba_prune.masks.allocations import ALLOCATIONS
from hf_mamba_prune.masks.budget import allocate, total_to_prune
from hf_mamba_prune.masks.slots import divide, weights_to_prune
from hf_mamba_prune.models.targets import Target


def target(name, rows, columns, component="in_proj", parts=()):
    return Target(name=name, component=component, layer=0, kind="linear", tap=None, shape=(rows, columns), parts=parts)


PARTS = (("x_proj.dt", 0, 3), ("x_proj.B", 3, 7), ("x_proj.C", 7, 11))
TARGETS = [
    target("a.in", 16, 8),
    target("a.x", 11, 16, "x_proj", PARTS),
    target("a.out", 8, 16, "out_proj"),
    target("b.in", 16, 8),
    target("b.x", 11, 16, "x_proj", PARTS),
]
SIZE = sum(t.size for t in TARGETS)
SCORES = {
    t.name: torch.rand(t.shape, generator=torch.Generator().manual_seed(i)) * (i + 1) for i, t in enumerate(TARGETS)
}


CURVES = defaultdict(lambda: ((0.3, 0.01), (0.6, 0.1), (0.9, 2.0)))


def score_of(t):
    return SCORES[t.name]


def budget_of(sparsity, scores=score_of, curves=CURVES, targets=TARGETS, **options):
    return allocate(targets, given_scores(scores), PruningConfig(sparsity=sparsity, **options), sparsity, curves)


def by_component(budget):
    counts = {}
    for slot, count in zip(budget.slots, budget.counts, strict=True):
        counts[slot.component] = counts.get(slot.component, 0) + count
    return counts


def test_the_table_is_the_list_of_names():
    assert tuple(ALLOCATIONS) == ALLOCATION_NAMES


@given(st.lists(st.integers(0, 500), max_size=8), st.floats(0, 1))
def test_divide_is_exact_and_each_share_is_rounded_from_its_own(sizes, part):
    total = round(part * sum(sizes))
    shares = divide(total, sizes)
    assert sum(shares) == total
    for share, size in zip(shares, sizes, strict=True):
        assert 0 <= share <= size and abs(share - total * size / max(1, sum(sizes))) < 1


def test_divide_gives_the_rest_to_the_largest_remainders():
    assert divide(10, [3, 3, 3]) == [4, 3, 3]
    assert divide(7, [1, 5, 4]) == [1, 3, 3]  # 0.7, 3.5, 2.8
    assert divide(0, [0, 0]) == [0, 0]


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.1, 1 / 3, 0.5, 0.7, 0.899, 0.95])
@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
def test_the_total_is_exact(allocation, sparsity):
    budget = budget_of(sparsity, allocation=allocation)
    assert budget.total == sum(budget.counts) == round(sparsity * SIZE) == weights_to_prune(sparsity, SIZE)
    assert total_to_prune(TARGETS, PruningConfig(sparsity=sparsity), sparsity) == budget.total
    assert [slot.name for slot in budget.slots] == [t.name for t in TARGETS]
    assert all(0 <= count <= slot.size for slot, count in zip(budget.slots, budget.counts, strict=True))


@pytest.mark.parametrize("allocation", ["uniform", "per-row"])
def test_uniform_gives_every_tensor_the_same_share(allocation):
    budget = budget_of(0.7, allocation=allocation)
    assert all(abs(count - 0.7 * slot.size) < 1 for slot, count in zip(budget.slots, budget.counts, strict=True))


def test_global_counts_are_those_of_one_sort_of_all_weights():
    budget = budget_of(0.6, allocation="global", ceiling=1.0)
    everything = torch.cat([scores.flatten() for scores in SCORES.values()]).sort().values
    threshold = everything[budget.total - 1]
    assert list(budget.counts) == [int((SCORES[t.name] <= threshold).sum()) for t in TARGETS]
    assert budget.at_ceiling == () and budget.counts[0] > 2 * budget.counts[3]


def test_a_ceiling_binds_is_reported_and_the_rest_goes_elsewhere():
    free = budget_of(0.6, allocation="global", ceiling=1.0)
    held = budget_of(0.6, allocation="global", ceiling=0.8)
    highest = [round(0.8 * t.size) for t in TARGETS]
    over = [t.name for t, count, high in zip(TARGETS, free.counts, highest, strict=True) if count > high]
    assert "a.in" in over and held.total == free.total
    assert set(over) <= set(held.at_ceiling) < {t.name for t in TARGETS}
    for slot, count, high, before in zip(held.slots, held.counts, highest, free.counts, strict=True):
        assert count == high if slot.name in held.at_ceiling else before <= count <= high


@pytest.mark.parametrize("fixed", [{}, {"in_proj": 0.65}], ids=["free", "fixed"])
@pytest.mark.parametrize("gone", [128, 124])
@pytest.mark.parametrize("allocation", [name for name in ALLOCATION_NAMES if name != "per-row"])
def test_what_is_zero_already_counts_in_full_also_above_the_ceiling(allocation, gone, fixed):
    """Zeros that a budget left out stay zeros all the same: the model would have more of them than was asked for."""
    scores = SCORES | {"a.in": SCORES["a.in"].clone(), "a.out": SCORES["a.out"].clone()}
    for name in ("a.in", "a.out"):
        scores[name].view(-1)[:gone] = 0.0
    budget = budget_of(0.7, lambda t: scores[t.name], allocation=allocation, ceiling=0.95, component_sparsity=fixed)
    counts = {slot.name: count for slot, count in zip(budget.slots, budget.counts, strict=True)}
    assert sum(max(count, int((scores[name] == 0).sum())) for name, count in counts.items()) == round(0.7 * SIZE)
    assert budget.total == round(0.7 * SIZE) and not {"a.in", "a.out"} & set(budget.at_ceiling)


def test_more_zeros_than_were_asked_for_move_no_budget():
    gone = {t.name: torch.zeros(t.shape) for t in TARGETS}
    for allocation in ALLOCATION_NAMES:
        budget = budget_of(0.3, lambda t: gone[t.name], allocation=allocation)
        assert budget.total == round(0.3 * SIZE)


def test_a_ceiling_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match="a sparsity of 0.8995 cannot be reached with a ceiling of 0.5 for each"):
        budget_of(0.9, allocation="global", ceiling=0.5)
    budget = budget_of(0.5, allocation="global", ceiling=0.5)
    assert list(budget.counts) == [t.size // 2 for t in TARGETS] and budget.total == SIZE // 2


@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
@pytest.mark.parametrize(
    "fixed",
    [{"out_proj": 0.9}, {"in_proj": 0.3, "out_proj": 0.2}, {"x_proj.B": 0.8}, {"x_proj.B": 0, "x_proj.C": 0.99}],
)
def test_fixed_components_and_parts_get_exactly_theirs_and_the_total_holds(allocation, fixed):
    budget = budget_of(0.5, allocation=allocation, component_sparsity=fixed)
    counts = by_component(budget)
    sizes = {"in_proj": 256, "out_proj": 128, "x_proj.B": 128, "x_proj.C": 128}
    assert {name: counts[name] for name in fixed} == {name: round(fixed[name] * sizes[name]) for name in fixed}
    assert budget.total == round(0.5 * SIZE) == sum(counts.values())


def test_owl_spares_the_block_with_more_outliers_and_treats_its_tensors_alike():
    targets = [
        Target(name=f"{layer}.{name}", component=name, layer=layer, kind="linear", tap=None, shape=(20, 10))
        for layer in range(3)
        for name in ("in", "out")
    ]
    scores = {t.name: torch.ones(20, 10) for t in targets}
    scores["1.in"].view(-1)[:20] = 100.0
    scores["2.out"].view(-1)[:5] = 100.0
    budget = budget_of(0.6, lambda t: scores[t.name], targets=targets, allocation="owl")
    shares = [count / 200 for count in budget.counts]
    assert budget.total == round(0.6 * 1200) and shares[0::2] == shares[1::2]
    assert shares[2] < shares[4] < shares[0] and shares[0] - shares[2] == pytest.approx(0.16, abs=0.006)


def test_sensitivity_prunes_where_it_costs_least():
    curves = CURVES | {"a.in": ((0.3, 0.0), (0.6, 0.001), (0.9, 0.002)), "b.x": ((0.3, 5.0), (0.6, 9.0), (0.9, 20.0))}
    budget = budget_of(0.5, curves=curves, allocation="sensitivity", ceiling=0.95)
    counts = dict(zip([slot.name for slot in budget.slots], budget.counts, strict=True))
    assert counts["a.in"] == round(0.95 * 128) and counts["b.x"] == 0 and budget.at_ceiling == ("a.in",)


def test_sensitivity_is_the_cheapest_of_all_budgets():
    targets = [target("a", 1, 10), target("b", 1, 10), target("c", 1, 10)]
    curves = {"a": ((0.3, 0.1), (0.6, 0.5), (0.9, 2.0)), "b": ((0.3, 0.3), (0.6, 0.7), (0.9, 1.2)), "c": ((0.9, 1.5),)}

    def cost(counts):
        total = 0.0
        for t, count in zip(targets, counts, strict=True):
            points = ((0.0, 0.0), *curves[t.name])
            low, high = next((a, b) for a, b in zip(points, points[1:], strict=False) if count <= 10 * b[0])
            total += low[1] + (high[1] - low[1]) * (count / 10 - low[0]) / (high[0] - low[0])
        return total

    every = [(a, b, 15 - a - b) for a in range(10) for b in range(10) if 0 <= 15 - a - b <= 9]
    budget = budget_of(
        0.5, lambda t: torch.ones(t.shape), curves=curves, targets=targets, allocation="sensitivity", ceiling=0.9
    )
    assert sum(budget.counts) == 15 and cost(budget.counts) == pytest.approx(min(cost(counts) for counts in every))


def test_sensitivity_is_not_paid_for_noise():
    """A loss that falls by chance at one level is no reason to go there, and a dip is bridged."""
    targets = [target("a", 1, 10), target("b", 1, 10)]
    curves = {"a": ((0.3, -0.2), (0.6, -0.1), (0.9, 0.9)), "b": ((0.3, 0.5), (0.6, 0.2), (0.9, 0.6))}
    options = dict(curves=curves, targets=targets, allocation="sensitivity", ceiling=0.9)
    assert list(budget_of(0.3, lambda t: torch.ones(t.shape), **options).counts) == [6, 0]
    assert list(budget_of(0.6, lambda t: torch.ones(t.shape), **options).counts) == [6, 6]


def test_fixed_components_rise_with_the_schedule():
    config = PruningConfig(sparsity=0.5, component_sparsity={"out_proj": 0.98, "in_proj": 0.0}, steps=5)
    budgets = [
        allocate(TARGETS, given_scores(score_of), config, sparsity, CURVES) for sparsity in (0.0, 0.1, 0.25, 0.5)
    ]
    assert [budget.total for budget in budgets] == [round(s * SIZE) for s in (0.0, 0.1, 0.25, 0.5)]
    assert [by_component(budget)["out_proj"] for budget in budgets] == [0, round(128 * 0.196), round(128 * 0.49), 125]
    assert all(by_component(budget)["in_proj"] == 0 for budget in budgets)


def test_parts_are_slots_of_their_rows():
    budget = budget_of(0.5, allocation="uniform", component_sparsity={"x_proj.B": 0.8})
    slots = [(s.name, s.component, s.start, s.stop, s.size) for s, _ in budget.of(TARGETS[1])]
    assert slots == [
        ("a.x[0:3]", "x_proj.dt", 0, 3, 48),
        ("a.x[3:7]", "x_proj.B", 3, 7, 64),
        ("a.x[7:11]", "x_proj.C", 7, 11, 64),
    ]
    assert [count for _, count in budget.of(TARGETS[1])][1] == round(0.8 * 64)
    assert sum(count for t in TARGETS for _, count in budget.of(t)) == budget.total
    assert torch.equal(budget.slots[2].cut(SCORES["a.x"]), SCORES["a.x"][3:7])


def test_contradictions_of_fixed_components_are_refused():
    everything = {"in_proj": 0.2, "x_proj": 0.2, "out_proj": 0.2}
    for options, message in (
        (dict(component_sparsity={"x_proj": 0.5, "x_proj.B": 0.5}), "names 'x_proj' and also a part of it: choose"),
        (dict(component_sparsity={"in_porj": 0.5}), "component_sparsity 'in_porj'. Did you mean 'in_proj'"),
        (dict(component_sparsity={"x_proj.BB": 0.5}), "Did you mean 'x_proj.B'"),
        (dict(component_sparsity={"dt_proj": 0.5}), "unknown component in component_sparsity 'dt_proj'"),
        (
            dict(component_sparsity=everything),
            "a sparsity of 0.5 contradicts component_sparsity, .* alone make 0.1997",
        ),
        (dict(component_sparsity={"in_proj": 0.99, "x_proj": 0.99}), "contradicts component_sparsity"),
    ):
        with pytest.raises(ValueError, match=message):
            budget_of(0.5, **options)
        with pytest.raises(ValueError, match=message):  # before anything is scored, too
            total_to_prune(TARGETS, PruningConfig(sparsity=0.5, **options), 0.5)


def test_everything_fixed_is_fine_when_the_total_agrees():
    shares = {"in_proj": 0.5, "x_proj": 0.5, "out_proj": 0.5}
    assert by_component(budget_of(0.5, component_sparsity=shares)) == {"in_proj": 128, "x_proj": 176, "out_proj": 64}


def test_a_pattern_sets_every_count():
    config = PruningConfig(pattern="2:4")
    budget = allocate(TARGETS, given_scores(score_of), config, config.sparsity)
    assert list(budget.counts) == [t.size // 2 for t in TARGETS]
    assert total_to_prune(TARGETS, config, 0.123) == SIZE // 2


def test_a_pattern_that_does_not_divide_a_row_is_refused_by_name():
    config = PruningConfig(pattern="1:3")
    with pytest.raises(ValueError, match=r"pattern 1:3 does not fit a.in: its rows have 8 weights, which 3 does not"):
        allocate(TARGETS, given_scores(score_of), config, config.sparsity)


def test_all_components_may_be_fixed_when_the_sparsity_is_theirs():
    fixed = dict(in_proj=0.7, x_proj=0.61, out_proj=0.55)
    with pytest.raises(ValueError, match="whose components alone make ([0-9.]+) of all") as refused:
        budget_of(0.5, component_sparsity=fixed)
    said = float(str(refused.value).split("alone make ")[1].split()[0])
    budget = budget_of(said, component_sparsity=fixed)
    assert abs(budget.total - said * SIZE) <= 1 and sum(budget.counts) == budget.total


def test_a_tensor_that_an_earlier_step_brought_to_the_ceiling_is_still_held_by_it():
    whole = {name: scores.clone() for name, scores in SCORES.items()}
    first = budget_of(0.5, given(whole), ceiling=0.6)
    assert first.at_ceiling
    for slot, count in zip(first.slots, first.counts, strict=True):
        flat = whole[slot.name].view(-1)
        flat[flat.argsort()[:count]] = 0
    assert set(budget_of(0.55, given(whole), ceiling=0.6).at_ceiling) >= set(first.at_ceiling)


def given(scores):
    return lambda target: scores[target.name]
