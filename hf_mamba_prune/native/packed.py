"""Packed matrices times a few vectors, and their rows as dense ones; the twins unpack and multiply with torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hf_mamba_prune.native.codes import (
    Grid,
    bytes_of_rows,
    decode_matrix,
    decode_planes,
    in_plane_order,
    levels_of,
    plane_bytes,
)
from hf_mamba_prune.native.library import (
    CODES,
    CODINGS,
    READABLE_BYTES,
    active_instruction_set,
    available,
    buffer,
    built,
    kernels,
)

_MOST_VALUES = torch.iinfo(torch.int32).max


class PackedMatrix:
    """A weight (rows, columns) as the kernels read it.

    Memory that fits is used as it is and must not change; what does not is copied.

    Args:
        shape: (rows, columns).
        mask: uint8 (rows, bytes), 1 = kept; None: all are held. Bit i of byte j is column 8 j + i, and bytes are at
            least ceil(columns / 8); of codes, in whole words, as `native.codes` says.
        values: the kept values row by row: float32, bfloat16, float16, or int8; or uint8, codes of a few bits as
            `native.codes` lays them out. Used as they are where as many bytes of the same memory follow them as
            `READABLE_BYTES`.
        scales: float (rows,) with int8 and codes.
        coding: name of the coding of codes, `mixed` or `int1` to `int4` under masks; None: that of the values' type.
        grid: what codes stand for.

    Raises:
        ValueError: it keeps more weights than the kernels count, or its parts do not fit each other.

    Attributes:
        handle: what the kernels get, with addresses of this matrix's memory; None where they are not built.
    """

    handle: Any

    def __init__(
        self,
        shape: tuple[int, int],
        mask: torch.Tensor | None,
        values: torch.Tensor,
        scales: torch.Tensor | None = None,
        coding: str | None = None,
        grid: Grid | None = None,
    ) -> None:
        rows, columns = shape
        self.shape, self.grid = shape, grid
        self.coding = coding or str(values.dtype).removeprefix("torch.")
        self.count = values.numel()
        self._values = _with_room(values)
        self.scales = None if scales is None else scales.float()
        self._masks, self._starts = None, None
        self._row_starts: torch.Tensor | None = None
        expected = rows * columns
        if mask is not None:
            self._masks = _by_words(mask, columns)
            ends = torch.cumsum(bits_of_rows(self._masks.view(torch.uint8)), 0)
            expected = int(ends[-1]) if rows else 0
            if expected > _MOST_VALUES:
                raise ValueError(
                    f"a matrix {shape} keeps {expected:,} weights; the kernels count up to {_MOST_VALUES:,}"
                )
            self._starts = torch.cat([ends.new_zeros(1), ends[:-1]]).to(torch.int32)
        self.kept = expected
        if grid is not None:
            expected = self._bytes_of_codes(grid)
        if self.count != expected:
            raise ValueError(f"a matrix {shape} has {self.count:,} values, expected {expected:,}")
        self._point()

    def _bytes_of_codes(self, grid: Grid) -> int:
        """Bytes that the codes must have; float copies of the scales are made on the way."""
        columns = grid.column_scales
        self.grid = Grid(
            levels=grid.levels, column_scales=None if columns is None else columns.float(), bits=grid.bits
        )
        if grid.bits is None:
            return int(self.coding.removeprefix("int")) * plane_bytes(self.kept)
        ends = torch.cumsum(bytes_of_rows(self.shape[1], grid.bits), 0)
        self._row_starts = torch.cat([ends.new_zeros(1), ends])[: len(grid.bits)].contiguous()
        return int(ends[-1]) if len(ends) else 0

    @classmethod
    def dense(cls, weight: torch.Tensor) -> PackedMatrix:
        """Of a weight (rows, columns), contiguous, in one of the float types: its memory as it is."""
        matrix = cls.__new__(cls)
        matrix.shape, matrix.count = (weight.shape[0], weight.shape[1]), weight.numel()
        matrix.coding, matrix.grid, matrix.kept = str(weight.dtype).removeprefix("torch."), None, matrix.count
        matrix._values, matrix.scales = weight.view(-1), None
        matrix._masks, matrix._starts, matrix._row_starts = None, None, None
        matrix._point()
        return matrix

    def _point(self) -> None:
        rows, columns = self.shape
        self.handle = None
        if built():
            self.handle = kernels().Matrix(
                rows=rows,
                columns=columns,
                coding=CODINGS[self.coding],
                masks=buffer(self._masks),
                values=buffer(self._values),
                starts=buffer(self._starts),
                scales=buffer(self.scales),
                **self._grid_buffers(),
            )

    def _grid_buffers(self) -> dict[str, Any]:
        grid = self.grid
        if grid is None:
            return {}
        return {
            "levels": buffer(grid.levels),
            "column_scales": buffer(grid.column_scales),
            "row_bits": buffer(grid.bits),
            "row_starts": buffer(self._row_starts),
        }

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self._values.dtype

    @property
    def values(self) -> torch.Tensor:
        """The kept values row by row."""
        return self._values[: self.count]

    @property
    def mask(self) -> torch.Tensor | None:
        """uint8 (rows, 8 * ceil(columns / 64))."""
        return None if self._masks is None else self._masks.view(torch.uint8)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        parts = [self._values, self._masks, self._starts, self.scales, self._row_starts]
        if self.grid is not None:
            parts += [self.grid.levels, self.grid.column_scales, self.grid.bits]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def multiplies_bytes(self) -> bool:
        """Whether `multiply` is the fastest product with many vectors too, in whole numbers."""
        return available() and active_instruction_set() != "portable" and self.grid is not None

    def multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        """Products with vectors, best a few; with codes also many.

        Args:
            vectors: (b, columns) float32. AVX2 and AVX-512 round them to int8, in groups of 256, where the weights
                are int8 or codes.

        Returns:
            (b, rows) float32.
        """
        if not available():
            return F.linear(vectors, self.rows(0, self.shape[0], torch.float32))
        vectors = vectors.contiguous()
        out = torch.empty(len(vectors), self.shape[0])
        kernels().packed_product(
            isa=active_instruction_set(),
            threads=torch.get_num_threads(),
            matrix=self.handle,
            batch=len(vectors),
            vectors=buffer(vectors),
            out=buffer(out),
        )
        return out

    def rows(self, first: int, count: int, dtype: torch.dtype, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [first, first + count) as (count, columns).

        Args:
            dtype: float32 or bfloat16, to which int8 times its scale is rounded.
            out: where to, contiguous; None makes a new one.
        """
        out = torch.empty(count, self.shape[1], dtype=dtype) if out is None else out
        if not available():
            return out.copy_(self._unpacked(slice(first, first + count)))
        self._write(out, first=first, count=count)
        return out

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Some rows as float32.

        Args:
            rows: integers, any shape, each in [0, rows).

        Returns:
            (*rows.shape, columns).

        Raises:
            IndexError: a row that there is not.
        """
        chosen = rows.reshape(-1).long().contiguous()
        if chosen.numel() and not (0 <= int(chosen.min()) and int(chosen.max()) < self.shape[0]):
            raise IndexError(f"a row of {int(chosen.min())} to {int(chosen.max())} is not among {self.shape[0]}")
        out = torch.empty(len(chosen), self.shape[1])
        if available():
            self._write(out, rows=buffer(chosen), count=len(chosen))
        else:
            out.copy_(self._unpacked(chosen))
        return out.view(*rows.shape, self.shape[1])

    def _write(self, out: torch.Tensor, **which: Any) -> None:
        kernels().packed_rows(
            isa=active_instruction_set(),
            threads=torch.get_num_threads(),
            matrix=self.handle,
            coding=CODES[out.dtype],
            out=buffer(out),
            **which,
        )

    def _unpacked(self, chosen: slice | torch.Tensor) -> torch.Tensor:
        """The twin: float32 rows."""
        weight = self.levels()[chosen].float()
        if self.scales is not None:
            weight = weight * self.scales[chosen][:, None]
        columns = None if self.grid is None else self.grid.column_scales
        return weight if columns is None else weight * columns

    def levels(self) -> torch.Tensor:
        """(rows, columns): the values or levels at their places, before any scale, and 0 where nothing is kept."""
        grid = self.grid
        if grid is not None and grid.bits is not None:
            return decode_matrix(self.shape, self.values, grid)
        if self._masks is None:
            return self.values.view(self.shape)
        mask, values = self._masks.view(torch.uint8), self.values
        if grid is not None:
            bits = int(self.coding.removeprefix("int"))
            values = levels_of(decode_planes(values, bits, self.kept), bits, grid.levels)
        weight = torch.zeros(self.shape[0], 8 * mask.shape[1], dtype=values.dtype)
        weight[kept_of(mask, weight.shape[1])] = values
        return (weight if grid is None else in_plane_order(weight))[:, : self.shape[1]]


def _with_room(values: torch.Tensor) -> torch.Tensor:
    """Values and what may be read behind them, in the memory where they are if that is there."""
    room = -(-READABLE_BYTES // values.element_size())
    start, there = values.storage_offset(), values.untyped_storage().nbytes() // values.element_size()
    if values.is_contiguous() and start + values.numel() + room <= there:
        return values.as_strided((values.numel() + room,), (1,), start)
    own = torch.zeros(values.numel() + room, dtype=values.dtype)
    own[: values.numel()] = values
    return own


def _by_words(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """int64 (rows, ceil(columns / 64)) of a mask, uint8 (rows, bytes)."""
    width = -(-columns // 64) * 8
    if mask.shape[1] != width or not mask.is_contiguous() or mask.data_ptr() % 8:
        padded = torch.zeros(len(mask), width, dtype=torch.uint8)
        padded[:, : mask.shape[1]] = mask
        mask = padded
    return mask.view(torch.int64)


class MatrixModule(nn.Module, ABC):
    """A module whose forward is the product with its matrix and a bias, or the choice of rows of it.

    The one-token step may stand for its call.
    """

    @property
    @abstractmethod
    def matrix(self) -> PackedMatrix:
        """(out, in), or (vocabulary, d_model)."""


_LINE, _HUGE = 64, 1 << 21


def settle(lengths: Sequence[int], blobs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Runs of bytes, uint8 in one dimension, moved into one block of memory, in huge pages where the system has them.

    Reading is faster then. Each has a storage of its own, so that it is copied and saved without the others.

    Args:
        lengths: of them.
        blobs: taken one at a time.
    """
    taken = sum(map(_lines, lengths))
    block = torch.empty(taken + _HUGE, dtype=torch.uint8)
    at = -block.data_ptr() % _HUGE
    if available() and taken >= _HUGE:  # the last page is filled in part: a small one
        kernels().prefer_huge_pages(memory=buffer(block[at : at + taken // _HUGE * _HUGE]))
    moved, memory = [], block.numpy()
    for length, blob in zip(lengths, blobs, strict=True):
        moved.append(torch.frombuffer(memory, dtype=torch.uint8, count=length, offset=at).copy_(blob))
        at += _lines(length)
    return moved


def _lines(length: int) -> int:
    return -(-length // _LINE) * _LINE


def bits_of_rows(mask: torch.Tensor) -> torch.Tensor:
    """(rows,) int64: bits that are set in each row of a mask, uint8 (rows, bytes), the bytes a multiple of 8."""
    words = mask.contiguous().view(torch.int64)
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((words * 0x0101010101010101) >> 56).sum(dim=1)


def kept_of(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """bool (rows, columns) of a mask, uint8 (rows, bytes): bit i of byte j is column 8 j + i."""
    bits = torch.arange(8, dtype=torch.uint8)
    return ((mask[..., None] >> bits) & 1).flatten(1)[:, :columns].bool()
