"""The masks of a training: what is due comes, also when a run goes on shorter, or for more than it was begun with."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build_model

from hf_mamba_prune import PruningConfig, find_targets
from hf_mamba_prune.training.gradual import GradualPruner

STEPS = 20


def config(sparsity=0.6):
    return PruningConfig(sparsity, score="gradient-magnitude", steps=3, end=0.7)


def observe(pruner, step, value=1.0):
    for parameter in pruner.model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    pruner.collect(step)


def run(pruner, first, last):
    """Steps first + 1 to last; the sparsities after those that pruned."""
    risen = {}
    for step in range(first, last):
        observe(pruner, step)
        if pruner.rise(step + 1):
            risen[step + 1] = pruner.sparsity()
    return risen


def begun(steps=STEPS, until=12):
    pruner = GradualPruner(build_model("mamba"), config())
    assert list(pruner.lay_out(steps)) == [5, 9, 14]
    assert list(run(pruner, 0, until)) == [step for step in (5, 9, 14) if step <= until]
    return pruner


def resumed(pruner, total, done, sparsity=0.6):
    again = GradualPruner(build_model("mamba"), config(sparsity))
    again.model.load_state_dict(pruner.model.state_dict())
    again.load_state(pruner.state())
    again.lay_out(total, done)
    return again


def exact(pruner, sparsity):
    size = sum(target.size for target in find_targets(pruner.model))
    return pruner.masked() == round(sparsity * size)


def test_a_run_resumed_as_it_was_does_what_was_left():
    pruner = resumed(begun(), STEPS, 12)
    assert list(pruner.events) == [14]
    assert list(run(pruner, 12, STEPS)) == [14] and exact(pruner, 0.6)


def test_what_is_due_in_a_shorter_run_comes_at_the_next_step():
    pruner = resumed(begun(), 15, 12)  # its last pruning step would have been the 11th
    assert list(pruner.events) == [13] and not pruner.finished(12)
    assert list(run(pruner, 12, 15)) == [13] and exact(pruner, 0.6) and pruner.finished(13)


def test_a_run_that_is_resumed_for_more_zeros_gets_them():
    pruner = resumed(begun(until=16), STEPS, 16, sparsity=0.8)
    assert list(run(pruner, 16, STEPS)) == [17] and exact(pruner, 0.8)


def test_without_a_finite_gradient_it_says_so():
    pruner = GradualPruner(build_model("mamba"), config())
    pruner.lay_out(STEPS)
    for step in range(5):
        observe(pruner, step, torch.nan)
    with pytest.raises(RuntimeError, match="no training step before the first pruning step had finite gradients"):
        pruner.rise(5)
