"""What files hold of packed weights: fewer bytes, every bit back, and damage refused."""

from __future__ import annotations

import struct
import zlib

import pytest
import torch
from packed_cases import coded_tensor

from hf_mamba_prune.codings import grids
from hf_mamba_prune.codings.blobs import HEAD_BYTES, to_blob
from hf_mamba_prune.codings.storage import from_stored, head_of, in_memory, length_in_memory, to_stored
from hf_mamba_prune.codings.tensors import DTYPES, PackedTensor, pack_tensor
from hf_mamba_prune.native.codes import WIDTHS
from hf_mamba_prune.repair.levels import level_table


def normal_weight(rows: int = 96, columns: int = 768, zeros: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (torch.rand(rows, columns, generator=generator) >= zeros)


def cases() -> list[PackedTensor]:
    found = [pack_tensor(normal_weight(zeros=zeros).to(dtype)) for zeros in (0.0, 0.7) for dtype in DTYPES.values()]
    found += [pack_tensor(normal_weight(zeros=zeros), "int8") for zeros in (0.0, 0.7, 1.0)]
    found += [coded_tensor(shape, "mixed", False)[0] for shape in ((20, 24), (7, 64), (33, 200), (0, 64))]
    found += [coded_tensor((33, columns), bits, False)[0] for bits in WIDTHS for columns in (24, 200)]
    found += [coded_tensor((33, columns), bits, True)[0] for bits in (1, 2, 3, 4) for columns in (24, 200)]
    return found


@pytest.mark.parametrize("packed", cases(), ids=lambda packed: f"{packed.coding}-{packed.shape}")
def test_every_bit_comes_back(packed):
    blob = to_blob(packed)
    stored = to_stored(blob)
    assert torch.equal(from_stored(stored), blob) and torch.equal(in_memory(stored), blob)
    assert in_memory(blob) is blob
    assert head_of(stored) == head_of(blob) and length_in_memory(stored) == len(blob)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_codes_take_what_their_levels_have_of_entropy(bits):
    """Levels of a normal variable, by even steps over three standard deviations."""
    codes = ((normal_weight() / 3 + 1) * (1 << bits - 1)).floor().clamp(0, (1 << bits) - 1).to(torch.uint8)
    shares = torch.bincount(codes.flatten().long()).double() / codes.numel()
    entropy = float(-(shares * shares.clamp_min(1e-30).log2()).sum())
    widths = torch.full((len(codes),), bits, dtype=torch.uint8)
    stored = to_stored(to_blob(of_codes(codes, widths)))
    assert entropy < 8 * len(stored) / codes.numel() < 1.02 * entropy + 0.1  # heads, scales and tables


def of_codes(codes: torch.Tensor, widths: torch.Tensor) -> PackedTensor:
    scales = torch.ones(len(codes), dtype=torch.bfloat16)
    return grids.coded_tensor(codes, widths, level_table(), scales=scales, column_scales=None, dtype=torch.float32)


def test_bfloat16_under_a_mask_takes_a_quarter_less():
    blob = to_blob(pack_tensor(normal_weight(zeros=0.7).bfloat16()))
    assert len(to_stored(blob)) < 0.75 * len(blob)


def first_kind(stored: torch.Tensor) -> tuple[int, int]:
    """Where the first kind that has bytes begins, and how many they are in the file."""
    at = HEAD_BYTES
    while not (length := struct.unpack_from("<q", stored.numpy().tobytes(), at)[0]):
        at += 8
    return at + 8, length


def with_length(stored: torch.Tensor, at: int, length: int) -> torch.Tensor:
    data = bytearray(stored.numpy().tobytes())
    struct.pack_into("<q", data, at - 8, length)
    return torch.frombuffer(data, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, at, length: s[:-1], "cut short"),
        (lambda s, at, length: s[:50], "head first"),
        (lambda s, at, length: torch.cat([s, s[:3]]), "3 bytes stand behind its end"),
        (lambda s, at, length: with_length(s, at, -1), "cut short"),
        (lambda s, at, length: with_length(s, at, 1 << 62), "cut short"),
        (lambda s, at, length: with_length(s, at, length - 1), "do not inflate to"),
        (lambda s, at, length: torch.cat([s[:at], s[at:] ^ 0xFF]), "inflate"),
    ],
)
def test_damage_is_refused(damage, message):
    stored = to_stored(to_blob(pack_tensor(normal_weight(zeros=0.7), "int8")))
    with pytest.raises(ValueError, match=message):
        in_memory(damage(stored, *first_kind(stored)))


def test_a_head_cannot_ask_for_more_memory_than_its_bytes_could_fill():
    stored = to_stored(to_blob(pack_tensor(normal_weight(), "int8")))
    data = bytearray(stored.numpy().tobytes())
    struct.pack_into("<qqq", data, 16, 1 << 18, 1 << 18, 1 << 36)
    with pytest.raises(ValueError, match="its head speaks of"):
        head_of(torch.frombuffer(data, dtype=torch.uint8))


def test_a_kind_cannot_inflate_beyond_its_place():
    packed = coded_tensor((64, 64), 3, True)[0]
    stored = to_stored(to_blob(packed))
    at, length = first_kind(stored)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(1 << 20)) + packer.flush()
    data = stored.numpy().tobytes()
    swapped = data[: at - 8] + struct.pack("<q", len(bomb)) + bomb + data[at + length :]
    with pytest.raises(ValueError, match="do not inflate to 512 bytes"):
        in_memory(torch.frombuffer(bytearray(swapped), dtype=torch.uint8))


def test_widths_that_do_not_make_the_codes_are_refused():
    packed = coded_tensor((33, 200), "mixed", False)[0]
    packed.grid.bits[0] += 1 if packed.grid.bits[0] < 6 else -1
    blob = to_blob(coded_tensor((33, 200), "mixed", False)[0])
    stored = to_stored(blob)
    wrong = torch.cat([stored[:HEAD_BYTES], kinds_with_widths(stored, packed.grid.bits)])
    with pytest.raises(ValueError, match="the widths of its rows do not make"):
        in_memory(wrong)


def kinds_with_widths(stored: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """All kinds, in the place of the widths these ones as they are."""
    data, at, out = stored.numpy().tobytes(), HEAD_BYTES, b""
    before = 1 + 2 + 2 + 1  # of mask, scales, scales of columns, levels
    for place in range(before + 1):
        length = struct.unpack_from("<q", data, at)[0]
        own = data[at + 8 : at + 8 + length] if place < before else bits.numpy().tobytes()
        out += struct.pack("<q", len(own)) + own
        at += 8 + length
    return torch.frombuffer(bytearray(out + data[at:]), dtype=torch.uint8)
