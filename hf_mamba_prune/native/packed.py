"""Packed matrices times a few vectors, and their rows as dense ones; the twins unpack and multiply with torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional as F

from hf_mamba_prune.native.library import (
    CODES,
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

    Args:
        shape: (rows, columns).
        mask: uint8 (rows, ceil(columns / 8)), bit = column, 1 = kept; None: every weight is held.
        values: the kept values row by row: float32, bfloat16, float16, or int8.
        scales: float32 (rows,) with int8.

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
    ) -> None:
        rows, columns = shape
        self.shape = shape
        self.count = values.numel()
        if mask is not None and self.count > _MOST_VALUES:
            raise ValueError(
                f"a matrix {shape} keeps {self.count:,} weights; the kernels count up to {_MOST_VALUES:,}"
            )
        room = -(-READABLE_BYTES // values.element_size())
        self._values = torch.zeros(self.count + room, dtype=values.dtype)
        self._values[: self.count] = values
        self.scales = None if scales is None else scales.clone()  # what is read from a file may be a view of all of it
        self._masks, self._starts = None, None
        if mask is not None:
            padded = torch.zeros(rows, -(-columns // 64) * 8, dtype=torch.uint8)
            padded[:, : mask.shape[1]] = mask
            self._masks = padded.view(torch.int64)
            ends = torch.cumsum(bits_of_rows(padded), 0)
            self._starts = torch.cat([ends.new_zeros(1), ends[:-1]]).to(torch.int32)
        self._point()

    def __getstate__(self) -> dict:
        """Copies hold memory of their own, and addresses of it."""
        clones = {name: own.clone() if isinstance(own, torch.Tensor) else own for name, own in vars(self).items()}
        return clones | {"handle": None}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._point()

    def _point(self) -> None:
        rows, columns = self.shape
        self.handle = None
        if built():
            self.handle = kernels().Matrix(
                rows=rows,
                columns=columns,
                coding=CODES[self.dtype],
                masks=buffer(self._masks),
                values=buffer(self._values),
                starts=buffer(self._starts),
                scales=buffer(self.scales),
            )

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
        """uint8 (rows, ceil(columns / 8)), as it was given."""
        if self._masks is None:
            return None
        return self._masks.view(torch.uint8)[:, : -(-self.shape[1] // 8)]

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        parts = (self._values, self._masks, self._starts, self.scales)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        """Products with a few vectors.

        Args:
            vectors: (b, columns), b at most `MAX_BATCH`; float32. AVX2 and AVX-512 round them to int8, in groups of
                256, where the weights are int8.

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
        if self._masks is None:
            weight = self.values.view(self.shape)[chosen].float()
        else:
            kept = kept_of(self._masks.view(torch.uint8), self.shape[1])
            weight = torch.zeros(self.shape)
            weight[kept] = self.values.float()
            weight = weight[chosen]
        return weight * self.scales[chosen][:, None] if self.scales is not None else weight


_LINE, _HUGE = 64, 1 << 21


def settle(matrices: Iterable[PackedMatrix]) -> None:
    """Move matrices into one block of memory, in huge pages where the system has them: reading it is faster then.

    Handles that were taken before point to memory that is gone.
    """
    matrices = list(matrices)
    parts = [(matrix, name) for matrix in matrices for name in ("_masks", "_values")]
    parts = [(matrix, name) for matrix, name in parts if getattr(matrix, name) is not None]
    room = sum(-(-getattr(matrix, name).nbytes // _LINE) * _LINE for matrix, name in parts)
    block = torch.empty(room + _HUGE, dtype=torch.uint8)
    at = -block.data_ptr() % _HUGE
    if available():
        kernels().prefer_huge_pages(memory=buffer(block[at : at + room]))
    for matrix, name in parts:
        old = getattr(matrix, name)
        new = block[at : at + old.nbytes].view(old.dtype).view(old.shape)
        setattr(matrix, name, new.copy_(old))
        at += -(-old.nbytes // _LINE) * _LINE
    for matrix in matrices:
        matrix._point()
    if available():
        kernels().give_memory_back()


_ONES = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.uint8)


def bits_of_rows(mask: torch.Tensor) -> torch.Tensor:
    """(rows,) int64: bits that are set in each row of a mask, uint8 (rows, bytes)."""
    return _ONES[mask.int()].sum(dim=1, dtype=torch.int64)


def kept_of(mask: torch.Tensor, columns: int) -> torch.Tensor:
    """bool (rows, columns) of a mask, uint8 (rows, bytes): bit i of byte j is column 8 j + i."""
    bits = torch.arange(8, dtype=torch.uint8)
    return ((mask[..., None] >> bits) & 1).flatten(1)[:, :columns].bool()
