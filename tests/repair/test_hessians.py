"""Sums of x x^T, in parts and many tokens at a time, are those of one product."""

from __future__ import annotations

import pytest
import torch

from hf_mamba_prune.repair import hessians
from hf_mamba_prune.repair.hessians import HessianSum


@pytest.mark.parametrize("columns", (5, 8, 24))
@pytest.mark.parametrize("groups", (None, 3))
@pytest.mark.parametrize("bf16", (False, True))
def test_the_mean_is_that_of_one_product(monkeypatch, columns, groups, bf16):
    monkeypatch.setattr(hessians, "_COLUMNS", 8)
    monkeypatch.setattr(hessians, "_TOKENS", 20)
    inputs = torch.randn(7, 6, columns)
    weights = None if groups is None else torch.rand(groups, 7, 6)
    found = HessianSum()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for place, rows in enumerate(inputs):
            found.add(rows, None if weights is None else weights[:, place])
    rows, by = inputs.flatten(0, 1).double(), torch.ones(1, 42) if weights is None else weights.flatten(1)
    wanted = torch.einsum("gt,ti,tj->gij", by.double(), rows, rows) / 42
    torch.testing.assert_close(found.mean(42), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.mean(42), found.mean(42).transpose(1, 2))
