"""Histograms and masks over magnitudes: counts against numpy's and the pure-torch twin's."""

from __future__ import annotations

import pytest
import torch
from native_cases import instruction_sets

from hf_mamba_prune import native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 15, 1000, 600_001]


def values_of(dtype: torch.dtype, size: int) -> torch.Tensor:
    torch.manual_seed(0)
    values = (torch.randn(size) * 0.05).to(dtype)
    values[::7] = 0.0
    values[1::11] = -0.0
    values[2::13] = 6e-8  # a denormal number of float16
    values[3::101] = float("-inf")
    return values


def keys_of(values: torch.Tensor) -> torch.Tensor:
    return values.float().abs().view(torch.int32).long()


@pytest.fixture(params=["twin", *instruction_sets()])
def way(request, monkeypatch):
    """The twin and each instruction set, one after the other."""
    if request.param == "twin":
        monkeypatch.setenv("HF_MAMBA_PRUNE_NATIVE", "0")
    else:
        monkeypatch.setenv("HF_MAMBA_PRUNE_ISA", request.param)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_radix_histogram_counts_the_bits_of_the_keys(way, dtype, size):
    values = values_of(dtype, size)
    keys = keys_of(values)
    whole = native.radix_histogram(values, 0, 0, 16)
    assert torch.equal(whole, torch.bincount(keys >> 16, minlength=1 << 16))
    prefix = int(whole.argmax())
    inside = keys[keys >> 16 == prefix]
    expected = torch.bincount((inside >> 5) & 2047, minlength=2048)
    assert torch.equal(native.radix_histogram(values, prefix, 16, 11), expected)
    assert native.radix_histogram(values, 1, 1, 8).sum() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_range_histogram_counts_all(way, dtype):
    values = values_of(dtype, 5000)
    keys = keys_of(values)
    low, shift, bins = 0x3C000000, 18, 37
    counts = native.range_histogram(values, low, shift, bins)
    assert counts[0] == (keys < low).sum() and counts.sum() == 5000
    assert counts[-1] == (keys >= low + (bins << shift)).sum()
    for i in (0, 5, 36):
        inside = (keys >= low + (i << shift)) & (keys < low + ((i + 1) << shift))
        assert counts[1 + i] == inside.sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_masks_and_positions_agree_with_the_keys(way, dtype, size):
    values = values_of(dtype, size)
    keys = keys_of(values)
    threshold = int(keys.median()) if size else 5
    keep = torch.zeros(size, dtype=torch.bool)
    assert native.keep_above(values, threshold, keep) == (keys == threshold).sum()
    assert torch.equal(keep, keys > threshold)
    assert torch.equal(native.tie_positions(values, threshold), torch.nonzero(keys == threshold).flatten())
    inside = (keys >= threshold) & (keys <= threshold + (1 << 22))
    for room in (size, int(inside.sum()) // 2):
        positions, taken = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int32)
        below, found = native.between(values, threshold, threshold + (1 << 22), positions, taken)
        assert below == (keys < threshold).sum() and found == inside.sum()
        if room == size:
            order = positions[:found].sort().indices
            assert torch.equal(positions[order], inside.nonzero().flatten())
            assert torch.equal(taken[order].long(), keys[inside])


def test_wrong_arguments_are_refused_by_name(way):
    values = values_of(torch.float32, 12)
    with pytest.raises(ValueError, match="values are torch.float64"):
        native.radix_histogram(values.double(), 0, 0, 8)
    with pytest.raises(ValueError, match="contiguous flat tensor"):
        native.radix_histogram(values.view(3, 4), 0, 0, 8)
    with pytest.raises(ValueError, match="contiguous flat tensor"):
        native.tie_positions(values[::2], 0)
    with pytest.raises(ValueError, match="prefix=9, prefix_bits=3"):
        native.radix_histogram(values, 9, 3, 8)
    with pytest.raises(ValueError, match="a key is -1"):
        native.between(values, -1, 5, torch.empty(12).long(), torch.empty(12).int())
    with pytest.raises(ValueError, match="keep is torch.int64"):
        native.keep_above(values, 1, torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ValueError, match="expected int64 and int32 of one length"):
        native.between(values, 1, 2, torch.empty(12).int(), torch.empty(12).int())
