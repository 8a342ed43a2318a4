"""A packed weight as one run of bytes: what a checkpoint holds under the weight's name, and modules compute on.

    head    64 bytes: magic, codes of dtype and coding, whether there is a mask, rows, columns, count of values
    mask    uint64 (rows, ceil(columns / 64)), little endian, bit = column, 1 = kept
    scales  float32 (rows,), with int8
    values  the kept values row by row, then as many zeros as the kernels may read behind them

Each part begins at a multiple of 64 bytes. The head alone says how long the whole is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

from hf_mamba_prune.native.packed import READABLE_BYTES
from hf_mamba_prune.packed.tensors import CODINGS, DTYPES, VALUES, PackedTensor, check_tensor

MAGIC = b"HMPpack2"
HEAD_BYTES = 64

_HEAD = struct.Struct("<8sBBBxIqqq24x")
_LINE = 64
_MOST = 1 << 40
"""Rows, columns and values beyond it are no weight's, and their products would not fit 64 bits."""


@dataclass(frozen=True, kw_only=True)
class BlobHead:
    """What the first bytes of a blob say, and so where its parts are.

    Args:
        shape: (out, in).
        dtype, coding: names of `DTYPES` and `CODINGS`.
        masked: whether there is a mask.
        count: of the values.
    """

    shape: tuple[int, int]
    dtype: str
    coding: str
    masked: bool
    count: int

    def lengths(self) -> tuple[int, int, int]:
        """Bytes of mask, scales and values, without what fills them up to the next part."""
        rows, columns = self.shape
        mask = rows * (-(-columns // 64) * 8) if self.masked else 0
        return mask, rows * 4 if self.coding == "int8" else 0, self.count * VALUES[self.coding].itemsize

    def starts(self) -> tuple[int, int, int, int]:
        """Where mask, scales and values begin, and where the blob ends."""
        mask, scales, values = self.lengths()
        first = HEAD_BYTES
        second = first + _lines(mask)
        third = second + _lines(scales)
        return first, second, third, third + _lines(values + READABLE_BYTES)


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


def to_blob(packed: PackedTensor) -> torch.Tensor:
    """uint8, one dimension, of a weight whose parts fit each other."""
    check_tensor(packed)
    count = packed.values.numel()
    head = BlobHead(
        shape=packed.shape, dtype=packed.dtype, coding=packed.coding, masked=packed.mask is not None, count=count
    )
    first, second, third, end = head.starts()
    blob = torch.zeros(end, dtype=torch.uint8)
    codes = list(DTYPES).index(packed.dtype), CODINGS.index(packed.coding), head.masked
    blob[:HEAD_BYTES] = torch.frombuffer(
        bytearray(_HEAD.pack(MAGIC, *codes, 0, *packed.shape, count)), dtype=torch.uint8
    )
    for start, part in ((first, packed.mask), (second, packed.scales), (third, packed.values)):
        if part is not None and part.numel():
            data = part.contiguous().view(-1).view(torch.uint8)
            blob[start : start + data.numel()] = data
    return blob


def read_head(blob: torch.Tensor, length: int) -> BlobHead:
    """The head of a blob, or of its first `HEAD_BYTES` bytes.

    Args:
        blob: what is there of it.
        length: bytes of all of it.

    Raises:
        ValueError: it is no blob of this format, or as long as its head does not say.
    """
    if blob.dtype != torch.uint8 or blob.dim() != 1 or blob.numel() < HEAD_BYTES:
        raise ValueError(f"it is {blob.dtype}, {tuple(blob.shape)}; a packed weight is uint8 in one row, head first")
    magic, dtype, coding, masked, zero, rows, columns, count = _HEAD.unpack(blob[:HEAD_BYTES].numpy().tobytes())
    known = magic == MAGIC and dtype < len(DTYPES) and coding < len(CODINGS) and masked < 2 and zero == 0
    if not known or not all(0 <= size < _MOST for size in (rows, columns, count, rows * columns)):
        raise ValueError("its head is not that of a packed weight")
    head = BlobHead(
        shape=(rows, columns), dtype=list(DTYPES)[dtype], coding=CODINGS[coding], masked=bool(masked), count=count
    )
    if head.starts()[-1] != length:
        raise ValueError(f"it has {length:,} bytes, its head says {head.starts()[-1]:,}")
    return head


def from_blob(blob: torch.Tensor) -> PackedTensor:
    """The weight that a blob holds; its parts are views of the blob. Whether they fit each other is for their users.

    Raises:
        ValueError: it is no blob of this format.
    """
    head = read_head(blob, blob.numel())
    rows, columns = head.shape
    (mask, scales, values), (first, second, third, _) = head.lengths(), head.starts()
    return PackedTensor(
        shape=head.shape,
        dtype=head.dtype,
        coding=head.coding,
        mask=blob[first : first + mask].view(rows, -(-columns // 64) * 8) if head.masked else None,
        values=blob[third : third + values].view(VALUES[head.coding]),
        scales=blob[second : second + scales].view(torch.float32) if head.coding == "int8" else None,
    )
