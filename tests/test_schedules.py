"""Schedules start at 0, end exactly at the final sparsity and never fall."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.schedules import SCHEDULES, sparsity_at, steps_for

RISING = sorted(set(SCHEDULES) - {"constant"})


@pytest.mark.parametrize("name", RISING)
def test_a_rising_schedule_starts_at_0_ends_at_1_and_never_falls(name):
    values = [SCHEDULES[name](i / 50) for i in range(51)]
    assert values[0] == 0 and math.isclose(values[-1], 1)
    assert all(a < b for a, b in zip(values, values[1:], strict=False))


def test_the_formulas():
    assert math.isclose(SCHEDULES["cubic"](0.5), 1 - 0.5**3)  # arXiv 2505.08299
    assert SCHEDULES["linear"](0.3) == 0.3
    assert math.isclose(SCHEDULES["exponential"](0.5), (1 - math.exp(-2.5)) / (1 - math.exp(-5)))
    assert SCHEDULES["constant"](0.0) == SCHEDULES["constant"](0.7) == 1


def test_the_order_of_the_schedules_on_the_way():
    linear, cubic, exponential, constant = (
        SCHEDULES[name](0.2) for name in ("linear", "cubic", "exponential", "constant")
    )
    assert linear < cubic < exponential < constant


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 0.999), st.floats(0, 1))
def test_the_end_is_exact_and_all_before_lies_between(name, final, progress):
    assert sparsity_at(name, 1.0, final) == sparsity_at(name, 7.0, final) == final
    start = final / 3
    assert start - 1e-9 <= sparsity_at(name, progress, final, start) <= final + 1e-9


def test_the_start_is_kept_and_progress_is_clamped():
    assert sparsity_at("linear", 0.0, 0.8, 0.2) == sparsity_at("linear", -1.0, 0.8, 0.2) == 0.2
    assert math.isclose(sparsity_at("linear", 0.5, 0.8, 0.2), 0.5)


def test_more_steps_where_a_step_would_take_more_of_what_is_left():
    assert [steps_for(sparsity) for sparsity in (0.0, 0.5, 0.7, 0.8, 0.9)] == [8, 8, 8, 12, 16]
    assert PruningConfig(sparsity=0.8).steps == 12
    assert PruningConfig(sparsity=0.8, steps=8).steps == 8
