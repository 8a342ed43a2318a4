"""Products of a packed matrix: with a few vectors, or from codes, by its own kernels; with many by unpacked tiles."""

from __future__ import annotations

import threading

import torch
from torch.nn import functional as F

from hf_mamba_prune.native.library import MAX_BATCH
from hf_mamba_prune.native.packed import PackedMatrix

TILE_WEIGHTS = 1 << 22
"""Weights unpacked at once for a product with many tokens."""

_scratch = threading.local()


def product_dtype(values: torch.dtype) -> torch.dtype:
    """In which products with many tokens are made: bfloat16 where values hold no more and the CPU multiplies it."""
    narrow = values in (torch.bfloat16, torch.int8, torch.uint8)
    return torch.bfloat16 if narrow and torch.cpu._is_avx512_bf16_supported() else torch.float32


def _tile(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Scratch memory of this thread: fresh memory would be mapped anew for every tile."""
    tiles = _scratch.__dict__.setdefault("tiles", {})
    if dtype not in tiles or tiles[dtype].numel() < rows * columns:
        tiles[dtype] = torch.empty(rows * columns, dtype=dtype)
    return tiles[dtype][: rows * columns].view(rows, columns)


def _tiles(matrix: PackedMatrix) -> list[tuple[int, int]]:
    """First row and count of rows of each."""
    rows, columns = matrix.shape
    step = max(1, TILE_WEIGHTS // max(1, columns))
    return [(first, min(step, rows - first)) for first in range(0, rows, step)]


def _dense(matrix: PackedMatrix, first: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return matrix.rows(first, count, dtype, out=_tile(count, matrix.shape[1], dtype))


@torch.no_grad()
def product(matrix: PackedMatrix, vectors: torch.Tensor) -> torch.Tensor:
    """(b, columns) -> (b, rows) in `product_dtype` of the values."""
    dtype = product_dtype(matrix.dtype)
    if len(vectors) <= MAX_BATCH or (matrix.multiplies_bytes and dtype == torch.float32):
        return matrix.multiply(vectors.float()).to(dtype)
    vectors, tiles = vectors.to(dtype), _tiles(matrix)
    if len(tiles) == 1:
        return F.linear(vectors, _dense(matrix, *tiles[0], dtype))
    out = vectors.new_empty(len(vectors), matrix.shape[0])
    for first, count in tiles:
        out[:, first : first + count] = F.linear(vectors, _dense(matrix, first, count, dtype))
    return out


@torch.no_grad()
def transposed_product(matrix: PackedMatrix, vectors: torch.Tensor) -> torch.Tensor:
    """(b, rows) -> (b, columns) float32: gradients of a product -> those of its vectors."""
    vectors = vectors.to(product_dtype(matrix.dtype))
    sums = torch.zeros(len(vectors), matrix.shape[1])
    for first, count in _tiles(matrix):
        sums += vectors[:, first : first + count] @ _dense(matrix, first, count, vectors.dtype)
    return sums
