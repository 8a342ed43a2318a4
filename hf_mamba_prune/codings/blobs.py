"""A packed weight as one run of bytes, which modules compute on; files hold it as `codings.storage` says.

    head    64 bytes: magic, numbers of dtype and coding, whether there are a mask and scales of columns, rows,
            columns, count of values
    mask    uint64 (rows, ceil(columns / 64)), little endian, bit = column, 1 = kept; of codes as `native.codes` says
    scales  (rows,): float32 with int8, bfloat16 with codes
    columns bfloat16 (columns,): scales of codes
    levels  int8 (62,): with codes; up to version 4 (30,), and codes of 5 bits count from -16 on
    bits    uint8 (rows,): widths of mixed codes
    values  the kept values row by row, then as many zeros as the kernels may read behind them

Each part begins at a multiple of 64 bytes. The head alone says how long the whole is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from hf_mamba_prune.codings.tensors import (
    CODINGS,
    DTYPES,
    MASKED_CODES,
    SCALES,
    VALUES,
    PackedTensor,
    check_tensor,
    pack_bits,
)
from hf_mamba_prune.native.codes import LEVELS, Grid, decode_planes, encode_planes, in_plane_order, plane_bytes
from hf_mamba_prune.native.packed import READABLE_BYTES, kept_of

MAGIC, NEWEST = b"HMPpack5", 5
_VERSIONS = {b"HMPpack2": 3, b"HMPpack4": 4, MAGIC: NEWEST}
"""Version 2 has the magic of 3. Up to there the masks of codes, and so their streams, have the order of columns."""
_OLDER_LEVELS = 30
HEAD_BYTES = 64

_HEAD = struct.Struct("<8sBBBBIqqq24x")
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
        columns_scaled: whether codes have scales of columns.
        count: of the values.
        version: of the format.
    """

    shape: tuple[int, int]
    dtype: str
    coding: str
    masked: bool
    columns_scaled: bool = False
    count: int
    version: int = NEWEST

    @property
    def coded(self) -> bool:
        """Whether the values are codes."""
        return self.coding in SCALES and self.coding != "int8"

    @property
    def value_bytes(self) -> int:
        """Of a value, or of the planes of codes one."""
        return VALUES[self.coding].itemsize

    @property
    def outdated(self) -> bool:
        """Whether it is read in another way than it is written."""
        return self.coded and self.version < NEWEST

    def lengths(self) -> tuple[int, ...]:
        """Bytes of mask, scales, scales of columns, levels, widths and values, without what fills them up."""
        rows, columns = self.shape
        return (
            rows * (-(-columns // 64) * 8) if self.masked else 0,
            rows * SCALES[self.coding].itemsize if self.coding in SCALES else 0,
            columns * 2 if self.columns_scaled else 0,
            0 if not self.coded else _OLDER_LEVELS if self.outdated else LEVELS,
            rows if self.coding == "mixed" else 0,
            self.count * self.value_bytes,
        )

    def starts(self) -> tuple[int, ...]:
        """Where each of them begins, and where the blob ends."""
        *parts, values = self.lengths()
        starts = [HEAD_BYTES]
        for length in parts:
            starts.append(starts[-1] + _lines(length))
        return (*starts, starts[-1] + _lines(values + READABLE_BYTES))


def _lines(size: int) -> int:
    return -(-size // _LINE) * _LINE


def to_blob(packed: PackedTensor) -> torch.Tensor:
    """uint8, one dimension, of a weight whose parts fit each other."""
    check_tensor(packed)
    count, grid = packed.values.numel(), packed.grid
    head = BlobHead(
        shape=packed.shape,
        dtype=packed.dtype,
        coding=packed.coding,
        masked=packed.mask is not None,
        columns_scaled=grid is not None and grid.column_scales is not None,
        count=count,
    )
    *starts, end = head.starts()
    blob = torch.zeros(end, dtype=torch.uint8)
    codes = list(DTYPES).index(packed.dtype), CODINGS.index(packed.coding), head.masked, head.columns_scaled
    blob[:HEAD_BYTES] = torch.frombuffer(
        bytearray(_HEAD.pack(MAGIC, *codes, 0, *packed.shape, count)), dtype=torch.uint8
    )
    of_grid = (None, None, None) if grid is None else (grid.column_scales, grid.levels, grid.bits)
    for start, part in zip(starts, (packed.mask, packed.scales, *of_grid, packed.values), strict=True):
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
    head = parse_head(blob, _VERSIONS)
    if head.starts()[-1] != length:
        raise ValueError(f"it has {length:,} bytes, its head says {head.starts()[-1]:,}")
    return head


def parse_head(blob: torch.Tensor, versions: Mapping[bytes, int]) -> BlobHead:
    """What the first `HEAD_BYTES` bytes say.

    Args:
        blob: uint8, one dimension.
        versions: of the format, by the magic that may be there.

    Raises:
        ValueError: they are no head.
    """
    if blob.dtype != torch.uint8 or blob.dim() != 1 or blob.numel() < HEAD_BYTES:
        raise ValueError(f"it is {blob.dtype}, {tuple(blob.shape)}; a packed weight is uint8 in one row, head first")
    magic, dtype, coding, masked, scaled, zero, rows, columns, count = _HEAD.unpack(
        blob[:HEAD_BYTES].numpy().tobytes()
    )
    known = (
        magic in versions and dtype < len(DTYPES) and coding < len(CODINGS) and max(masked, scaled) < 2 and zero == 0
    )
    if not known or not all(0 <= size < _MOST for size in (rows, columns, count, rows * columns)):
        raise ValueError("its head is not that of a packed weight")
    head = BlobHead(
        shape=(rows, columns),
        dtype=list(DTYPES)[dtype],
        coding=CODINGS[coding],
        masked=bool(masked),
        columns_scaled=bool(scaled),
        count=count,
        version=versions[magic],
    )
    if head.columns_scaled and not head.coded:
        raise ValueError("its head is not that of a packed weight")
    return head


def from_blob(blob: torch.Tensor) -> PackedTensor:
    """The weight that a blob holds; its parts are views of the blob, but for what older versions hold in another way.

    Whether they fit each other is for their users.

    Raises:
        ValueError: it is no blob of this format.
    """
    head = read_head(blob, blob.numel())
    (rows, columns), starts = head.shape, head.starts()
    mask, scales, column_scales, levels, bits, values = (
        blob[start : start + length] for start, length in zip(starts[:-1], head.lengths(), strict=True)
    )
    grid = None
    if head.coded:
        grid = Grid(
            levels=_with_five_bits(levels.view(torch.int8)) if head.outdated else levels.view(torch.int8),
            column_scales=column_scales.view(torch.bfloat16) if head.columns_scaled else None,
            bits=bits if head.coding == "mixed" else None,
        )
    packed = PackedTensor(
        shape=head.shape,
        dtype=head.dtype,
        coding=head.coding,
        mask=mask.view(rows, -(-columns // 64) * 8) if head.masked else None,
        values=values.view(VALUES[head.coding]),
        scales=scales.view(SCALES[head.coding]) if head.coding in SCALES else None,
        grid=grid,
    )
    by_columns = head.version < 4 and head.masked and head.coding in MASKED_CODES
    return _in_plane_order(packed) if by_columns else packed


def up_to_date(blob: torch.Tensor) -> torch.Tensor:
    """The same weight as this version writes it; the blob itself where that is the same.

    Raises:
        ValueError: it is no blob of this format, or its parts do not fit each other.
    """
    return to_blob(from_blob(blob)) if read_head(blob, blob.numel()).outdated else blob


def _with_five_bits(levels: torch.Tensor) -> torch.Tensor:
    """With the even levels that codes of 5 bits had."""
    return torch.cat([levels, torch.arange(-16, 16, dtype=torch.int8)])


def _in_plane_order(packed: PackedTensor) -> PackedTensor:
    """Masks and streams as they are now, of those that have the order of columns."""
    assert packed.mask is not None
    keep = kept_of(packed.mask, 8 * packed.mask.shape[1])
    width, count = MASKED_CODES[packed.coding], int(keep.sum())
    if packed.values.numel() != width * plane_bytes(count):
        raise ValueError(f"there are {packed.values.numel()} bytes of codes, expected {width * plane_bytes(count)}")
    codes = torch.zeros(keep.shape, dtype=torch.uint8)
    codes[keep] = decode_planes(packed.values, width, count)
    keep, codes = in_plane_order(keep), in_plane_order(codes)
    return replace(packed, mask=pack_bits(keep), values=encode_planes(codes[keep], width))
