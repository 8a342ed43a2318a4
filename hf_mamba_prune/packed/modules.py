"""The two modules that hold packed weights: a linear map and an embedding. For inference on a CPU."""

from __future__ import annotations

import threading

import torch
from torch import nn
from torch.nn import functional as F

from hf_mamba_prune.native.library import MAX_BATCH
from hf_mamba_prune.native.packed import PackedMatrix

TILE_WEIGHTS = 1 << 22
"""Weights unpacked at once for a product with many tokens."""

_scratch = threading.local()


def product_dtype(values: torch.dtype) -> torch.dtype:
    """In which products with many tokens are made: bfloat16 where values hold no more and the CPU multiplies it."""
    narrow = values in (torch.bfloat16, torch.int8)
    return torch.bfloat16 if narrow and torch.cpu._is_avx512_bf16_supported() else torch.float32


def _tile(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Scratch memory of this thread: fresh memory would be mapped anew for every tile."""
    tiles = _scratch.__dict__.setdefault("tiles", {})
    if dtype not in tiles or tiles[dtype].numel() < rows * columns:
        tiles[dtype] = torch.empty(rows * columns, dtype=dtype)
    return tiles[dtype][: rows * columns].view(rows, columns)


class PackedLinear(nn.Module):
    """`nn.Linear` from a packed weight.

    Args:
        matrix: of the weight (out, in).
        bias: (out,), or None.
    """

    def __init__(self, matrix: PackedMatrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = matrix.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of its output and of `weight`."""
        return product_dtype(self.matrix.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), unpacked anew: the mixers read the weights of some projections."""
        return self.matrix.rows(0, self.out_features, self.dtype)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out) in `dtype`. A few tokens from the bitmask, more of them by unpacked tiles."""
        vectors = x.reshape(-1, self.in_features)
        if len(vectors) <= MAX_BATCH:
            out = self.matrix.multiply(vectors.float()).to(self.dtype)
        else:
            out = self._by_tiles(vectors.to(self.dtype))
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def _by_tiles(self, vectors: torch.Tensor) -> torch.Tensor:
        step = max(1, TILE_WEIGHTS // self.in_features)
        if step >= self.out_features:
            return self._product(vectors, 0, self.out_features)
        out = vectors.new_empty(len(vectors), self.out_features)
        for first in range(0, self.out_features, step):
            count = min(step, self.out_features - first)
            out[:, first : first + count] = self._product(vectors, first, count)
        return out

    def _product(self, vectors: torch.Tensor, first: int, count: int) -> torch.Tensor:
        tile = _tile(count, self.in_features, self.dtype)
        return F.linear(vectors, self.matrix.rows(first, count, self.dtype, out=tile))

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.matrix.dtype}, {self.matrix.count} kept"


class PackedEmbedding(nn.Module):
    """`nn.Embedding` from a packed weight (vocabulary, d_model)."""

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.num_embeddings, self.embedding_dim = matrix.shape

    @property
    def weight(self) -> torch.Tensor:
        """(vocabulary, d_model) float32, unpacked anew."""
        return self.matrix.rows(0, self.num_embeddings, torch.float32)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 (...) -> (..., d_model) float32."""
        return self.matrix.take(ids)
