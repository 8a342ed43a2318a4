"""A weight in packed form: the same bytes come back, and parts that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from hf_mamba_prune.codings.tensors import DTYPES, check_tensor, count_bits, pack_tensor, unpack_tensor

_BITS = {4: torch.int32, 2: torch.int16}


def bits(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous().view(_BITS[weight.element_size()])


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 150),
    kept=st.sampled_from((0.0, 0.1, 0.5, 0.97, 1.0)),
    dtype=st.sampled_from(list(DTYPES.values())),
    seed=st.integers(0, 1000),
)
def test_the_same_bytes_come_back(rows, columns, kept, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(-(2**15), 2**15, (rows, columns), generator=generator)  # any bits: NaN, infinite, -0.0 too
    weight = draw.to(torch.int16).view(torch.bfloat16).to(dtype)
    weight[torch.rand(rows, columns, generator=generator) >= kept] = 0
    if rows > 2:
        weight[0], weight[1] = 0, 1
    packed = pack_tensor(weight)
    assert torch.equal(bits(unpack_tensor(packed)), bits(weight))
    assert torch.equal(packed.kept() & (bits(weight) != 0), bits(weight) != 0)
    assert packed.bytes <= weight.numel() * weight.element_size()


def test_seventy_percent_zeros_take_what_the_bits_say():
    weight = torch.randn(60, 128).bfloat16()
    weight.view(-1)[torch.randperm(60 * 128)[: 60 * 128 * 7 // 10]] = 0
    assert pack_tensor(weight).bytes == 60 * 128 // 8 + 60 * 128 * 3 // 10 * 2
    assert pack_tensor(weight, "int8").bytes <= 60 * 128 // 8 + 60 * 128 * 3 // 10 + 60 * 4
    assert pack_tensor(weight[:, :80]).mask.shape == (60, 16)  # rows end with a word of the kernels


def test_a_mask_that_saves_nothing_is_left_out():
    assert pack_tensor(torch.ones(4, 80).bfloat16()).mask is None
    assert pack_tensor(torch.eye(4, 80).bfloat16()).mask is not None


def test_int8_divides_each_row_by_its_largest():
    weight = torch.tensor([[0.5, -1.0, 0.0, 0.001], [0.0, 0.0, 0.0, 0.0], [0.0, 254.0, 3.0, 0.9]])
    packed = pack_tensor(weight, "int8")
    assert torch.equal(packed.scales, torch.tensor([1 / 127, 0.0, 2.0]))
    expected = torch.tensor([[64 / 127, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 254.0, 4.0, 0.0]])
    torch.testing.assert_close(unpack_tensor(packed), expected)
    with_zeros = pack_tensor(torch.eye(5, 100), "int8")
    assert count_bits(with_zeros.mask) == with_zeros.values.numel() == 5


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="expected \\(out, in\\)"):
        pack_tensor(torch.ones(3))
    with pytest.raises(ValueError, match="torch.float64"):
        pack_tensor(torch.ones(3, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="cannot be coded as 'bfloat16': expected float32 or int8"):
        pack_tensor(torch.ones(3, 3), "bfloat16")
    with pytest.raises(ValueError, match="NaN or infinite"):
        pack_tensor(torch.tensor([[1.0, float("nan")]]), "int8")


GOOD = pack_tensor(torch.eye(5, 13))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(values=GOOD.values[:-1]), "there are 4 values, expected 5"),
        (dict(values=GOOD.values.double()), "values are torch.float64"),
        (dict(mask=GOOD.mask[:, :1]), "the mask is torch.uint8, \\(5, 1\\); expected uint8, \\(5, 8\\)"),
        (dict(mask=GOOD.mask | 128), "bits beyond the last of 13 columns"),
        (dict(shape=(5, 65)), "expected uint8, \\(5, 16\\)"),
        (dict(scales=torch.ones(5)), "scales belong to int8"),
        (dict(coding="int5"), "coding 'int5' of dtype 'float32' is not known"),
        (
            dict(coding="int8", values=GOOD.values.to(torch.int8), scales=torch.ones(4)),
            "scales are torch.float32, \\(4,\\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    check_tensor(GOOD)
    with pytest.raises(ValueError, match=message):
        unpack_tensor(replace(GOOD, **change))
