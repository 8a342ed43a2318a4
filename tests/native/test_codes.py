"""Codes of a few bits on every instruction set: rows, chosen rows and products are those of what they stand for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from native_cases import distance, instruction_sets
from packed_cases import coded_tensor, of_version_3, of_version_4

from hf_mamba_prune import native
from hf_mamba_prune.codings.blobs import from_blob, to_blob, up_to_date
from hf_mamba_prune.codings.tensors import unpack_tensor
from hf_mamba_prune.native.codes import decode_planes, encode_planes, in_plane_order

SHAPES = ((1, 1), (7, 12), (33, 16), (16, 64), (40, 100), (70, 320))
MASKED = (1, 2, 3, 4)
UNMASKED = ("mixed", 0, 1, 2, 3, 4, 5, 6)
CASES = [(bits, True) for bits in MASKED] + [(bits, False) for bits in UNMASKED]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize(("bits", "masked"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_and_products_are_those_of_the_levels(shape, bits, masked, isa):
    packed, weight = coded_tensor(shape, bits, masked)
    rows, columns = shape
    with native.force_instruction_set(isa) if native.available() else nullcontext():
        matrix = packed.matrix()
        assert torch.equal(matrix.rows(0, rows, torch.float32), weight)
        assert torch.equal(matrix.rows(0, rows, torch.bfloat16), weight.bfloat16())
        chosen = torch.tensor([rows - 1, 0, rows // 2])
        assert torch.equal(matrix.take(chosen), weight[chosen])
        for batch in (1, 3, 8, 150):
            vectors = torch.randn(batch, columns, generator=torch.Generator().manual_seed(batch))
            terms = vectors.abs() @ weight.abs().T  # AVX2 and AVX-512 round the vectors to int8
            assert distance(matrix.multiply(vectors), vectors @ weight.T, terms) < 0.005


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("masked", (True, False))
def test_many_vectors_give_what_each_gives_alone(masked, isa):
    packed, _ = coded_tensor((70, 320), 3 if masked else "mixed", masked)
    vectors = torch.randn(150, 320, generator=torch.Generator().manual_seed(0))
    with native.force_instruction_set(isa) if native.available() else nullcontext():
        matrix = packed.matrix()
        assert torch.equal(matrix.multiply(vectors), torch.cat([*map(matrix.multiply, vectors.split(1))]))


@pytest.mark.parametrize(("bits", "masked"), CASES)
def test_the_twin_unpacks_the_same(bits, masked, monkeypatch):
    packed, weight = coded_tensor((33, 100), bits, masked)
    monkeypatch.setenv("HF_MAMBA_PRUNE_NATIVE", "0")
    assert torch.equal(unpack_tensor(packed), weight)


@pytest.mark.parametrize("bits", MASKED)
def test_masks_and_codes_in_the_order_of_columns_still_load(bits):
    packed, _ = coded_tensor((33, 100), bits, masked=True)
    old = of_version_3(to_blob(packed))
    assert not torch.equal(old[64:], to_blob(packed)[64:])
    found = from_blob(old)
    assert torch.equal(found.mask, packed.mask) and torch.equal(found.values, packed.values)


@pytest.mark.parametrize("bits", ("mixed", 5, 3))
def test_codes_of_five_bits_of_version_4_have_even_levels(bits):
    packed, _ = coded_tensor((33, 100), bits, masked=False)
    levels = torch.cat([packed.grid.levels[:30], torch.arange(-16, 16, dtype=torch.int8)])
    packed = replace(packed, grid=replace(packed.grid, levels=levels))
    old = of_version_4(to_blob(packed))
    assert torch.equal(unpack_tensor(from_blob(old)), unpack_tensor(packed))
    assert torch.equal(up_to_date(old), to_blob(packed))


def test_a_weight_without_rows_is_its_own_order():
    assert in_plane_order(torch.zeros(0, 70, dtype=torch.bool)).shape == (0, 128)


def test_older_codes_that_do_not_fit_their_mask_are_refused():
    blob = to_blob(coded_tensor((4, 64), 2, masked=True)[0])
    blob[:8] = torch.tensor([*b"HMPpack2"])
    blob[64:96] = 255
    with pytest.raises(ValueError, match="bytes of codes, expected 64"):
        from_blob(blob)


def test_planes_give_back_the_codes_whatever_their_count():
    for count in (0, 1, 63, 64, 65, 1000):
        codes = torch.randint(0, 8, (count,), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
        assert torch.equal(decode_planes(encode_planes(codes, 3), 3, count), codes)
