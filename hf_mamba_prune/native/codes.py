"""Codes of a few bits: how they lie in planes of bits, and the levels that they stand for.

Without masks each row has codes of its own width, and is a run of words of 64 columns (fewer in a narrow matrix).
A word is a plane of 4 bits, of 2 and of 1, as far as the width needs them, the first with the lowest bits; a plane of
p bits puts column l + i * bytes into bits p * i of byte l. With masks there is a plane of single bits for each bit of
a code, a stream over the kept weights of the whole matrix: bit 8 l + i of the mask of a word is column l + 8 i, as in
a plane of 1 of 64 columns (in narrow matrices too), and the streams follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WIDTHS = (0, 1, 2, 3, 4, 5, 6)
"""Bits that a code may have without masks, where a row of 0 bits is zero; with them 1 to 4."""
LEVELS, LEVEL_OFFSET = 62, 32
"""Levels of the tables for 1 to 5 bits, one after the other, and the magnitude of the lowest that may be; a code of 6
bits counts levels from -32 on."""

NARROW = 32
"""Columns up to which a matrix has words no wider than it needs."""

_PLANES = (4, 2, 1)


def first_level(bits: int) -> int:
    """Where the table for codes of 1 to 5 bits begins."""
    return (1 << bits) - 2


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What the codes of a matrix (out, in) stand for: level x scale of the row x scale of the column.

    Args:
        levels: int8 (LEVELS,), each from -32 to 31.
        column_scales: float (in,); None: 1.
        bits: uint8 (out,), width of each row's codes; None under masks.
    """

    levels: torch.Tensor
    column_scales: torch.Tensor | None
    bits: torch.Tensor | None


def word_columns(columns: int) -> int:
    """Columns of a word, with those that fill it up."""
    return 64 if columns > NARROW else -(-columns // 8) * 8


def bytes_of_rows(columns: int, bits: torch.Tensor) -> torch.Tensor:
    """int64 (out,): bytes of each unmasked row, from the widths of their codes."""
    return bits.long() * (-(-columns // 64) * (word_columns(columns) // 8))


def levels_of(codes: torch.Tensor, bits: int, levels: torch.Tensor) -> torch.Tensor:
    """int8 levels of uint8 codes of one width."""
    if bits > 5:
        return (codes.short() - (1 << bits) // 2).to(torch.int8)
    return levels[first_level(bits) + codes.long()]


def encode_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 (rows, columns) -> uint8 (rows, row_bytes)."""
    rows, columns = codes.shape
    width = word_columns(columns)
    words = -(-columns // 64)
    padded = torch.zeros(rows, words * width, dtype=torch.uint8)
    padded[:, :columns] = codes
    rest, planes = padded.view(rows, words, width), []
    for plane in _PLANES:
        if not bits & plane:
            continue
        fields = (rest & ((1 << plane) - 1)).view(rows, words, 8 // plane, width * plane // 8)
        shifts = torch.arange(0, 8, plane, dtype=torch.uint8)[:, None]
        planes.append((fields << shifts).sum(2, dtype=torch.uint8))
        rest = rest >> plane
    return torch.cat(planes, dim=2).view(rows, -1)


def decode_rows(data: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """uint8 (rows, row_bytes) -> uint8 (rows, columns)."""
    rows, width, words = len(data), word_columns(columns), -(-columns // 64)
    data = data.view(rows, words, width // 8 * bits)
    codes, low, at = torch.zeros(rows, words, width, dtype=torch.uint8), 0, 0
    for plane in _PLANES:
        if not bits & plane:
            continue
        size = width * plane // 8
        shifts = torch.arange(0, 8, plane, dtype=torch.uint8)[:, None]
        fields = (data[:, :, None, at : at + size] >> shifts) & ((1 << plane) - 1)
        codes |= fields.reshape(rows, words, width) << low
        low, at = low + plane, at + size
    return codes.view(rows, -1)[:, :columns]


def in_plane_order(matrix: torch.Tensor) -> torch.Tensor:
    """(rows, columns) -> (rows, 64 * words), filled up with 0: column l + 8 i of a word goes to place 8 l + i."""
    rows, columns = matrix.shape
    padded = matrix.new_zeros(rows, -(-columns // 64) * 64)
    padded[:, :columns] = matrix
    return padded.view(rows, padded.shape[1] // 64, 8, 8).transpose(2, 3).reshape(padded.shape)


def plane_bytes(count: int) -> int:
    """Bytes of one plane under masks that keep so many weights."""
    return -(-count // 64) * 8


def encode_planes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 (kept,) -> uint8 (bits * plane_bytes,)."""
    padded = torch.zeros(plane_bytes(len(codes)) * 8, dtype=torch.uint8)
    padded[: len(codes)] = codes
    places = torch.arange(8, dtype=torch.uint8)
    planes = [((padded.view(-1, 8) >> plane & 1) << places).sum(1, dtype=torch.uint8) for plane in range(bits)]
    return torch.cat(planes) if planes else padded[:0]


def decode_planes(data: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """uint8 (bits * plane_bytes,) -> uint8 (kept,)."""
    places = torch.arange(8, dtype=torch.uint8)
    planes = (data.view(bits, -1, 1) >> places & 1).flatten(1)[:, :count]
    return (planes << torch.arange(bits, dtype=torch.uint8)[:, None]).sum(0, dtype=torch.uint8)


def encode_matrix(codes: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Codes, uint8 (out, in), in the widths of their rows, uint8 (out,) -> uint8 in one dimension."""
    sizes = bytes_of_rows(codes.shape[1], bits)
    out = torch.empty(int(sizes.sum()), dtype=torch.uint8)
    starts = torch.cumsum(sizes, 0) - sizes
    for width in sorted(set(bits.tolist()) - {0}):
        rows = torch.nonzero(bits == width)[:, 0]
        data = encode_rows(codes[rows], width)
        out[starts[rows][:, None] + torch.arange(data.shape[1])] = data
    return out


def decode_matrix(shape: tuple[int, int], data: torch.Tensor, grid: Grid) -> torch.Tensor:
    """int8 (out, in): the levels of an unmasked matrix."""
    assert grid.bits is not None  # of an unmasked matrix
    sizes = bytes_of_rows(shape[1], grid.bits)
    starts = torch.cumsum(sizes, 0) - sizes
    out = torch.zeros(shape, dtype=torch.int8)
    for width in sorted(set(grid.bits.tolist()) - {0}):
        rows = torch.nonzero(grid.bits == width)[:, 0]
        own = data[starts[rows][:, None] + torch.arange(int(sizes[rows[0]]))]
        out[rows] = levels_of(decode_rows(own, width, shape[1]), width, grid.levels)
    return out
