"""A packed weight as files hold it: its bytes by their kind, each kind in the Huffman code that fits it.

    head    64 bytes, those of the blob with a magic of its own
    kinds   one after the other, each with its bytes in the file before it, int64: deflated, or as they are where that
            saves nothing

Bytes of the mask, of scales and floats by their place in the number, of widths, and of codes by the plane that they
lie in: the low bits of a code of 3, 5 or 6 bits are first turned over where its highest bit is set, so that they
say how far from zero its level is, and small levels are likelier. Nothing is lost: the blob comes back bit for bit.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from hf_mamba_prune.codings.blobs import (
    HEAD_BYTES,
    MAGIC,
    NEWEST,
    BlobHead,
    parse_head,
    read_head,
    to_blob,
    up_to_date,
)
from hf_mamba_prune.codings.tensors import MASKED_CODES, PackedTensor
from hf_mamba_prune.native.codes import bytes_of_rows, word_columns

STORED_MAGIC = b"HMPpack6"
_WORTH = 0.99
"""Deflated where that takes less than so much of the room."""
_EXPANDED = 8
"""A byte takes at least a bit of a Huffman code."""
_LENGTH = struct.Struct("<q")
_WORD = 64
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
"""Bits of the planes of a word, by the width of its codes, the lowest first."""


def in_memory(data: torch.Tensor) -> torch.Tensor:
    """The blob that modules compute on, as the newest version has it, of what a file of any version holds.

    Raises:
        ValueError: it is damaged.
    """
    return from_stored(data) if _is_stored(data) else up_to_date(data)


def head_of(data: torch.Tensor) -> BlobHead:
    """What a file of any version says of a packed weight.

    Raises:
        ValueError: it is none.
    """
    return _stored_head(data) if _is_stored(data) else read_head(data, data.numel())


def length_in_memory(data: torch.Tensor) -> int:
    """Bytes of what `in_memory` gives.

    Raises:
        ValueError: as there.
    """
    return replace(head_of(data), version=NEWEST).starts()[-1]


def to_stored(blob: torch.Tensor) -> torch.Tensor:
    """A blob of the newest version, uint8 in one dimension, as files hold it."""
    parts = [STORED_MAGIC, blob[len(MAGIC) : HEAD_BYTES].numpy().tobytes()]
    for held in _held(blob):
        parts += [_LENGTH.pack(len(held)), held]
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)


def stored_bits(packed: PackedTensor) -> int:
    """What the parts of a weight take in a file, without its head and their lengths."""
    return 8 * sum(map(len, _held(to_blob(packed))))


def _held(blob: torch.Tensor) -> Iterator[bytes]:
    for kind in _kinds(blob, read_head(blob, blob.numel())):
        data = kind.numpy().tobytes()
        small = _deflated(data)
        yield small if len(small) < _WORTH * len(data) else data


def from_stored(stored: torch.Tensor) -> torch.Tensor:
    """The blob, uint8 in one dimension.

    Raises:
        ValueError: it is damaged.
    """
    head = _stored_head(stored)
    starts, lengths = head.starts(), head.lengths()
    blob = torch.zeros(starts[-1], dtype=torch.uint8)
    blob[: len(MAGIC)] = torch.frombuffer(bytearray(MAGIC), dtype=torch.uint8)
    blob[len(MAGIC) : HEAD_BYTES] = stored[len(MAGIC) : HEAD_BYTES]
    reader = _Reader(stored)
    for place, (start, length) in enumerate(zip(starts[:-1], lengths, strict=True)):
        part = blob[start : start + length]
        if place < len(lengths) - 1:
            _put_numbers(part, _number_bytes(head, place), reader)
        else:
            bits = blob[starts[place - 1] : starts[place - 1] + lengths[place - 1]]
            _put_values(part, head, bits, reader)
    reader.finish()
    return blob


def _is_stored(data: torch.Tensor) -> bool:
    return data[: len(STORED_MAGIC)].view(torch.uint8).numpy().tobytes() == STORED_MAGIC


def _stored_head(stored: torch.Tensor) -> BlobHead:
    head, length = parse_head(stored, {STORED_MAGIC: NEWEST}), stored.numel()
    if sum(head.lengths()) > _EXPANDED * length:  # before so much memory is taken
        raise ValueError(f"it has {length:,} bytes, its head speaks of {sum(head.lengths()):,}")
    return head


class _Reader:
    """Takes one kind of bytes after the other."""

    def __init__(self, stored: torch.Tensor) -> None:
        self._data, self._at = memoryview(stored.numpy().tobytes()), HEAD_BYTES

    def take(self, length: int) -> torch.Tensor:
        """uint8 (length,)"""
        held = self._bytes(_LENGTH.unpack(self._bytes(_LENGTH.size))[0])
        data = bytearray(held if len(held) == length else _inflated(held, length))
        return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)

    def _bytes(self, length: int) -> memoryview:
        first, self._at = self._at, self._at + length
        if not 0 <= length <= len(self._data) - first:
            raise ValueError("it was cut short")
        return self._data[first : self._at]

    def finish(self) -> None:
        """Refuses what stands behind the last kind."""
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at:,} bytes stand behind its end")


def _deflated(data: bytes) -> bytes:
    """Without a search for what comes again: codes are random but for how often each comes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def _inflated(held: memoryview, length: int) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(held, length + 1)
    except zlib.error as error:
        raise ValueError(f"its bytes cannot be inflated: {error}") from error
    if len(data) != length or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"its bytes do not inflate to {length:,} bytes")
    return data


def _number_bytes(head: BlobHead, place: int) -> int:
    """Bytes of the numbers that the parts before the values hold: mask, scales, of columns, levels, widths."""
    return (1, 2 if head.coded else 4, 2, 1, 1)[place]


def _kinds(blob: torch.Tensor, head: BlobHead) -> Iterator[torch.Tensor]:
    """What a file holds of a blob, kind by kind, each contiguous."""
    *parts, values = (
        blob[start : start + length] for start, length in zip(head.starts()[:-1], head.lengths(), strict=True)
    )
    for place, part in enumerate(parts):
        yield from part.view(-1, _number_bytes(head, place)).T.contiguous()
    bits = parts[-1]
    if not head.coded:
        yield from values.view(-1, head.value_bytes).T.contiguous()
    elif head.coding in MASKED_CODES:
        *low, high = values.view(MASKED_CODES[head.coding], -1)
        yield from (plane ^ high for plane in low)
        yield high
    elif word_columns(head.shape[1]) < _WORD:
        yield values
    else:
        words = values.clone().view(torch.int64)
        for width, places in _rows_of_widths(head.shape[1], bits):
            yield from _split_words(words[places].view(torch.uint8), width)


def _put_numbers(part: torch.Tensor, size: int, reader: _Reader) -> None:
    for place in range(size):
        part[place::size] = reader.take(len(part) // size)


def _put_values(values: torch.Tensor, head: BlobHead, bits: torch.Tensor, reader: _Reader) -> None:
    """The way back of what `_kinds` makes of codes and other values."""
    if not head.coded:
        _put_numbers(values, head.value_bytes, reader)
    elif head.coding in MASKED_CODES:
        width = MASKED_CODES[head.coding]
        if len(values) % width:
            raise ValueError(f"{len(values):,} bytes of codes are not {width} planes")
        planes = values.view(width, -1)
        for plane in planes:
            plane.copy_(reader.take(planes.shape[1]))
        planes[:-1] ^= planes[-1]
    elif word_columns(head.shape[1]) < _WORD:
        values.copy_(reader.take(len(values)))
    else:
        if not set(bits.tolist()) <= {0, *_PLANES} or int(bytes_of_rows(head.shape[1], bits).sum()) != len(values):
            raise ValueError(f"the widths of its rows do not make {len(values):,} bytes of codes")
        for width, places in _rows_of_widths(head.shape[1], bits):
            values.view(torch.int64)[places] = _joined_words(reader, len(places), width).view(torch.int64)


def _rows_of_widths(columns: int, bits: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Each width above 0 that rows have, and where their words lie, int64 (rows of it * words, width)."""
    sizes = bytes_of_rows(columns, bits) // 8
    starts = torch.cumsum(sizes, 0) - sizes
    for width in sorted(set(bits.tolist()) - {0}):
        own = starts[bits == width]
        yield width, (own[:, None] + torch.arange(width * -(-columns // _WORD))).view(-1, width)


def _split_words(words: torch.Tensor, width: int) -> list[torch.Tensor]:
    """uint8 (n, 8 * width) -> the planes of its words, each (n * bytes of a plane)."""
    planes = list(words.split([8 * bits for bits in _PLANES[width]], dim=1))
    return [plane.flatten() for plane in _turned(planes, width)]


def _joined_words(reader: _Reader, count: int, width: int) -> torch.Tensor:
    """The way back: uint8 (n, 8 * width)"""
    planes = [reader.take(8 * bits * count).view(count, 8 * bits) for bits in _PLANES[width]]
    return torch.cat(_turned(planes, width), dim=1)


def _turned(planes: list[torch.Tensor], width: int) -> list[torch.Tensor]:
    """The low bits of codes turned over where the highest is set; twice is as before.

    Byte l of a plane of p bits has column l + 8 p i in its bits p * i, so that the bits of one low byte's columns lie
    in one byte of the high plane, as far apart.
    """
    if len(planes) == 1:
        return planes
    low, high = planes
    bits, own = _PLANES[width]
    parts = torch.arange(bits // own, dtype=torch.uint8)
    fields = sum(1 << bits * place for place in range(8 // bits))
    turned = (high[:, None] >> (own * parts + own - 1)[:, None] & fields) * ((1 << bits) - 1)
    return [low ^ turned.flatten(1), high]
