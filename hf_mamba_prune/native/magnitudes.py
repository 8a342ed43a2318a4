"""Histograms and masks over magnitudes. The key of a value is the bit pattern of float32(|value|): keys sort alike.

NaN has the largest keys of all. The twins work on pieces, so their extra memory does not grow with the tensor.
"""

from collections.abc import Iterator
from typing import Any

import torch

from hf_mamba_prune.native.library import CODES, active_instruction_set, available, buffer, kernels

PIECE = 1 << 22
READABLE = (torch.float32, torch.bfloat16, torch.float16)


def _check(values: torch.Tensor) -> None:
    if values.dtype not in READABLE:
        raise ValueError(f"values are {values.dtype}, expected float32, bfloat16 or float16")
    if values.dim() != 1 or not values.is_contiguous():
        raise ValueError(
            f"values have shape {tuple(values.shape)}, expected a contiguous flat tensor: pass .reshape(-1)"
        )


def _native(values: torch.Tensor) -> bool:
    return available() and values.device.type == "cpu"


def _given(values: torch.Tensor) -> dict[str, Any]:
    """What every call of a kernel is told."""
    return {
        "isa": active_instruction_set(),
        "threads": torch.get_num_threads(),
        "values": buffer(values),
        "coding": CODES[values.dtype],
    }


def _pieces(values: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields (start, keys int32) for pieces of the values."""
    for start in range(0, values.numel(), PIECE):
        yield start, values[start : start + PIECE].detach().float().abs().view(torch.int32)


def range_histogram(values: torch.Tensor, low: int, shift: int, bins: int) -> torch.Tensor:
    """Counts of the keys below `low`, in `bins` bins of width 2^shift from `low` on, and above the last bin.

    Args:
        values: flat, contiguous; float32, bfloat16 or float16.
        low: the first key of the first bin, in [0, 2^31). shift: in [0, 31]. bins: positive.

    Returns:
        int64 (bins + 2,): below, the bins, above. It sums to the number of values.

    Raises:
        ValueError: dtype, shape or range do not fit.
    """
    _check(values)
    if not 0 <= low < 1 << 31 or not 0 <= shift <= 31 or bins < 1:
        raise ValueError(
            f"low={low}, shift={shift}, bins={bins}: expected low in [0, 2^31), shift in [0, 31] and at least one bin"
        )
    counts = torch.zeros(bins + 2, dtype=torch.int64, device=values.device)
    if _native(values):
        kernels().range_histogram(**_given(values), low=low, shift=shift, bins=bins, counts=buffer(counts))
        return counts
    for _, keys in _pieces(values):
        slot = ((keys.long() - low) >> shift).clamp(-1, bins) + 1
        counts += torch.bincount(slot, minlength=bins + 2)
    return counts


def radix_histogram(values: torch.Tensor, prefix: int, prefix_bits: int, bits: int) -> torch.Tensor:
    """Among the keys whose top `prefix_bits` bits are `prefix`, the counts by their next `bits` bits.

    Args:
        values: flat, contiguous; float32, bfloat16 or float16.
        prefix: in [0, 2^prefix_bits). prefix_bits, bits: together at most 32, bits at least 1.

    Returns:
        int64 (2^bits,).

    Raises:
        ValueError: dtype, shape or bits do not fit.
    """
    if bits < 1 or prefix_bits < 0 or prefix_bits + bits > 32 or not 0 <= prefix < 1 << prefix_bits:
        raise ValueError(f"prefix={prefix}, prefix_bits={prefix_bits}, bits={bits}: a key has 32 bits, the first is 0")
    low = prefix << (32 - prefix_bits)
    if low >= 1 << 31:
        _check(values)
        return torch.zeros(1 << bits, dtype=torch.int64, device=values.device)
    return range_histogram(values, low, 32 - prefix_bits - bits, 1 << bits)[1:-1]


def keep_above(values: torch.Tensor, threshold_key: int, keep: torch.Tensor) -> int:
    """keep[i] = key(values[i]) > threshold_key; returns how many keys equal the threshold.

    Args:
        values: flat, contiguous; float32, bfloat16 or float16.
        threshold_key: in [0, 2^31).
        keep: bool or uint8 of the same shape, contiguous, overwritten.

    Raises:
        ValueError: dtype, shape or key do not fit.
    """
    _check(values)
    _check_key(threshold_key)
    if keep.dtype not in (torch.bool, torch.uint8) or keep.shape != values.shape or not keep.is_contiguous():
        raise ValueError(
            f"keep is {keep.dtype} of shape {tuple(keep.shape)}, expected contiguous bool, shape {tuple(values.shape)}"
        )
    if _native(values) and keep.device.type == "cpu":
        return kernels().keep_above(**_given(values), threshold=threshold_key, keep=buffer(keep))
    ties = 0
    for start, keys in _pieces(values):
        keep[start : start + PIECE] = keys > threshold_key
        ties += int((keys == threshold_key).sum())
    return ties


def between(values: torch.Tensor, low: int, high: int, positions: torch.Tensor, keys: torch.Tensor) -> tuple[int, int]:
    """How many keys are below `low`, and how many are in [low, high]; takes these out if there is room for them.

    Args:
        values: flat, contiguous; float32, bfloat16 or float16.
        low, high: keys, in [0, 2^31).
        positions, keys: int64 and int32 of one length, contiguous, on the CPU. When that many suffice, they begin with
            the positions and the keys of the found ones, in no order; otherwise what they hold is not complete.

    Raises:
        ValueError: dtype, shape or key do not fit.
    """
    _check(values)
    _check_key(low)
    _check_key(high)
    if low > high:
        raise ValueError(f"low={low}, high={high}: expected low <= high")
    if any(x.device.type != "cpu" or not x.is_contiguous() for x in (positions, keys)):
        raise ValueError("positions and keys must be contiguous and on the CPU")
    if positions.dtype != torch.int64 or keys.dtype != torch.int32 or positions.shape != keys.shape:
        raise ValueError(
            f"positions are {positions.dtype} of shape {tuple(positions.shape)} and keys {keys.dtype} of shape "
            f"{tuple(keys.shape)}, expected int64 and int32 of one length"
        )
    room = positions.numel()
    if _native(values):
        counts = kernels().between(
            **_given(values), low=low, high=high, positions=buffer(positions), keys=buffer(keys)
        )
        return counts.below, counts.found
    below = found = 0
    for start, own in _pieces(values):
        below += int((own < low).sum())
        inside = ((own >= low) & (own <= high)).nonzero().flatten()
        if found + len(inside) <= room:
            positions[found : found + len(inside)] = (inside + start).cpu()
            keys[found : found + len(inside)] = own[inside].cpu()
        found += len(inside)
    return below, found


def tie_positions(values: torch.Tensor, threshold_key: int) -> torch.Tensor:
    """The positions of the values whose key equals the threshold: int64, ascending.

    Raises:
        ValueError: dtype, shape or key do not fit.
    """
    found = values.numel() // 128 + 1024
    room = 0
    while found > room:
        room = found
        positions, keys = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int32)
        found = between(values, threshold_key, threshold_key, positions, keys)[1]
    return positions[:found].sort().values.to(values.device)


def _check_key(key: int) -> None:
    if not 0 <= key < 1 << 31:
        raise ValueError(f"a key is {key}, expected the bit pattern of a non-negative float32: in [0, 2^31)")
