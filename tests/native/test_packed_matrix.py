"""Packed matrices on every instruction set: products, rows and chosen rows against plain torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from native_cases import distance, instruction_sets

from hf_mamba_prune import native
from hf_mamba_prune.codings.tensors import pack_tensor, unpack_tensor
from hf_mamba_prune.native.library import MAX_BATCH
from hf_mamba_prune.native.packed import PackedMatrix, settle

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
CODINGS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
SHAPES = ((1, 1), (7, 5), (16, 64), (17, 63), (33, 129), (48, 48), (40, 200), (250, 160))
FORCED = pytest.mark.parametrize("isa", instruction_sets())
GROUP = 256  # columns that share a scale where the kernels round activations


def packed(
    shape: tuple[int, int], coding: torch.dtype, kept: float, seed: int = 0
) -> tuple[PackedMatrix, torch.Tensor]:
    """A random matrix, and what it stands for in float32. Row 2 is all zeros, row 3 has none."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < kept
    mask[2:3], mask[3:4] = False, True
    weight = (torch.randn(shape, generator=generator) * mask).to(torch.bfloat16 if coding == torch.int8 else coding)
    tensor = pack_tensor(weight, "int8" if coding == torch.int8 else None)
    matrix = PackedMatrix(tensor.shape, tensor.mask, tensor.values, tensor.scales)
    if coding != torch.int8:
        return matrix, unpack_tensor(tensor).float()
    whole = torch.zeros(shape)
    whole[tensor.kept()] = tensor.values.float()
    return matrix, whole * tensor.scales[:, None]


def forced(isa: str):
    return native.force_instruction_set(isa) if native.available() else torch.no_grad()


def rounded(vectors: torch.Tensor) -> torch.Tensor:
    """What kernels that multiply bytes make of the vectors that meet int8 weights."""
    columns = vectors.shape[1]
    groups = torch.nn.functional.pad(vectors, (0, -columns % GROUP)).view(len(vectors), -1, GROUP)
    scale = groups.abs().amax(2, keepdim=True) / 127
    return ((groups / scale.clamp_min(1e-30)).round() * scale).flatten(1)[:, :columns]


@FORCED
@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("kept", (0.0, 0.3, 1.0))
def test_products_are_those_of_the_dense_matrix(isa, coding, kept):
    for shape, batch in itertools.product(SHAPES, (1, 2, 3, MAX_BATCH)):
        matrix, dense = packed(shape, coding, kept)
        vectors = torch.randn(batch, shape[1], generator=torch.Generator().manual_seed(1))
        with forced(isa):
            found = matrix.multiply(vectors)
        if isa in ("avx2", "avx512", "avx512_bf16") and coding == torch.int8:
            vectors = rounded(vectors)
        expected = vectors.double() @ dense.double().T
        size = vectors.double().abs() @ dense.double().abs().T
        assert found.shape == expected.shape
        assert distance(found, expected, size) < 2e-5, (shape, batch)


@FORCED
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_rows_come_back_exactly(isa, coding):
    for shape, kept in itertools.product(SHAPES, (0.0, 0.3, 1.0)):
        matrix, dense = packed(shape, coding, kept)
        first, count = shape[0] // 3, shape[0] - shape[0] // 3
        with forced(isa):
            found = matrix.rows(first, count, torch.float32)
            narrow = matrix.rows(first, count, torch.bfloat16)
            chosen = torch.tensor([[0, shape[0] - 1], [shape[0] // 2, 0]])
            taken = matrix.take(chosen)
        assert torch.equal(found, dense[first:])
        assert torch.equal(taken, dense[chosen])
        assert torch.equal(narrow, dense[first:].bfloat16())


@needs_kernels
def test_the_twins_agree_with_the_kernels(monkeypatch):
    matrix, _ = packed((40, 200), torch.bfloat16, 0.3)
    vectors = torch.randn(3, 200)
    fast = matrix.multiply(vectors), matrix.rows(8, 9, torch.float32), matrix.take(torch.tensor([5, 39]))
    monkeypatch.setenv("HF_MAMBA_PRUNE_NATIVE", "0")
    slow = matrix.multiply(vectors), matrix.rows(8, 9, torch.float32), matrix.take(torch.tensor([5, 39]))
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(fast[1], slow[1])
    assert torch.equal(fast[2], slow[2])


@needs_kernels
def test_threads_do_not_change_a_product():
    matrix, _ = packed((250, 160), torch.int8, 0.3)
    vectors, before = torch.randn(2, 160), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(matrix.multiply(vectors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_row_that_there_is_not_is_refused():
    matrix, _ = packed((7, 5), torch.float32, 0.3)
    for row in (-1, 7):
        with pytest.raises(IndexError, match="is not among 7"):
            matrix.take(torch.tensor([0, row]))


def test_mask_and_values_are_handed_back_as_they_came():
    tensor = pack_tensor(torch.eye(5, 70, dtype=torch.bfloat16))
    matrix = PackedMatrix(tensor.shape, tensor.mask, tensor.values)
    assert torch.equal(matrix.mask, tensor.mask)
    assert torch.equal(matrix.values, tensor.values)
    assert matrix.bytes < 5 * 16 + 5 * 4 + 5 * 2 + 64 + 1


def test_settled_matrices_multiply_as_before():
    found = [
        packed((40, 200), torch.int8, 0.3),
        packed((17, 63), torch.float32, 1.0),
        packed((7, 5), torch.bfloat16, 0),
    ]
    vectors = [torch.randn(2, matrix.shape[1]) for matrix, _ in found]
    before = [matrix.multiply(x) for (matrix, _), x in zip(found, vectors, strict=True)]
    blobs = [matrix._values.view(torch.uint8) for matrix, _ in found]
    values = settle([len(blob) for blob in blobs], blobs)
    for (old, dense), held, x, product in zip(found, values, vectors, before, strict=True):
        assert held.data_ptr() % 64 == 0 and held.untyped_storage().nbytes() == held.numel()
        matrix = PackedMatrix(old.shape, old.mask, held.view(old.dtype)[: old.count], old.scales)
        assert matrix.values.data_ptr() == held.data_ptr()
        assert torch.equal(matrix.multiply(x), product)
        assert torch.equal(matrix.rows(0, len(dense), torch.float32), dense)
