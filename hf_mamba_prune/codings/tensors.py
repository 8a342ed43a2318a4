"""One weight in packed form: a bitmask of what is kept, and the kept values or the codes of their levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_mamba_prune.native.codes import (
    LEVEL_OFFSET,
    LEVELS,
    WIDTHS,
    Grid,
    bytes_of_rows,
    in_plane_order,
    plane_bytes,
)
from hf_mamba_prune.native.library import built
from hf_mamba_prune.native.packed import PackedMatrix, bits_of_rows, kept_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MASKED_CODES = {"int1": 1, "int2": 2, "int3": 3, "int4": 4}
"""Bits of codes under masks."""
CODINGS = (*DTYPES, "int8", "mixed", *MASKED_CODES)
"""How values are held: as they are in one of three float types; as int8 with one float32 scale for each row; or as
codes of levels, without masks in a width of each row's own (`mixed`) or under masks in one width."""

VALUES = DTYPES | {"int8": torch.int8} | dict.fromkeys(("mixed", *MASKED_CODES), torch.uint8)
"""Type of the values in each coding; codes are bytes of their planes."""
SCALES = {"int8": torch.float32} | dict.fromkeys(("mixed", *MASKED_CODES), torch.bfloat16)
"""Type of the scales in each coding that has them."""

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class PackedTensor:
    """A weight (out, in) in packed form.

    Args:
        shape: (out, in).
        dtype: of the weight that it stands for, a name of `DTYPES`.
        coding: of the values, a name of `CODINGS`; a float coding is that dtype, bit for bit.
        mask: uint8 (out, 8 * ceil(in / 64)), bit i of byte j is column 8 j + i, 1 = kept; None: all weights are held.
            Of codes bit 8 l + i of 64 is column l + 8 i.
        values: the kept values row by row, in the coding's type, one dimension; of codes their bytes.
        scales: (out,) in the type of `SCALES`, where the coding has them.
        grid: what codes stand for, the scales of columns in bfloat16; None with other codings.
    """

    shape: tuple[int, int]
    dtype: str
    coding: str
    mask: torch.Tensor | None
    values: torch.Tensor
    scales: torch.Tensor | None = None
    grid: Grid | None = None

    @property
    def bytes(self) -> int:
        """Size of all its parts."""
        parts = [self.mask, self.values, self.scales]
        if self.grid is not None:
            parts += [self.grid.levels, self.grid.column_scales, self.grid.bits]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def kept(self) -> torch.Tensor:
        """bool (out, in), True = kept."""
        if self.mask is None:
            return torch.ones(self.shape, dtype=torch.bool)
        columns = self.shape[1]
        if self.grid is None:
            return kept_of(self.mask, columns)
        return in_plane_order(kept_of(self.mask, 8 * self.mask.shape[1]))[:, :columns]

    def widths(self) -> torch.Tensor:
        """uint8 (out,), bits of each row's codes, where values are codes."""
        if self.grid is not None and self.grid.bits is not None:
            return self.grid.bits
        return torch.full((self.shape[0],), MASKED_CODES[self.coding], dtype=torch.uint8)

    def matrix(self) -> PackedMatrix:
        """What the kernels compute on.

        Raises:
            ValueError: the parts do not fit each other.
        """
        if not built():  # the kernels' own check is as strict
            check_tensor(self)
        coding = None if self.grid is None else self.coding
        return PackedMatrix(self.shape, self.mask, self.values, self.scales, coding=coding, grid=self.grid)


def pack_tensor(weight: torch.Tensor, coding: str | None = None) -> PackedTensor:
    """Pack a weight.

    A float coding keeps each bit of each weight, -0.0 and NaN included. With int8 a row is divided by a scale that
    puts its largest magnitude on 127; weights that round to 0 are dropped. The mask is left out where all weights
    take less room.

    Args:
        weight: (out, in), float32, bfloat16 or float16.
        coding: the weight's own dtype, or `int8`; None: the weight's own.

    Raises:
        ValueError: another dtype, number of dimensions or coding, or int8 of weights that are not finite.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    if weight.dim() != 2 or weight.dtype not in names:
        raise ValueError(
            f"a weight is {tuple(weight.shape)}, {weight.dtype}; expected (out, in), one of {list(DTYPES)}"
        )
    dtype = names[weight.dtype]
    coding = coding or dtype
    if coding not in (dtype, "int8"):
        raise ValueError(f"a {dtype} weight cannot be coded as {coding!r}: expected {dtype} or int8")
    weight, scales = weight.detach().cpu(), None
    if coding == "int8":
        weight, scales = _to_int8(weight)
        kept = weight != 0
    else:
        kept = weight.view(_BITS[weight.dtype]) != 0
    mask: torch.Tensor | None = pack_bits(kept)
    values = weight[kept]
    if not worth_a_mask(weight.shape, values.numel(), weight.element_size()):
        mask, values = None, weight.reshape(-1)
    rows, columns = weight.shape
    return PackedTensor(shape=(rows, columns), dtype=dtype, coding=coding, mask=mask, values=values, scales=scales)


def worth_a_mask(shape: Sequence[int], kept: int, size: int) -> bool:
    """Whether a mask and the kept values, of so many bytes each, take less room than all values."""
    rows, columns = shape
    return rows * -(-columns // 64) * 8 + kept * size < rows * columns * size


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = weight.float().abs().amax(dim=1) if weight.numel() else weight.new_zeros(weight.shape[0]).float()
    if not torch.isfinite(largest).all():
        raise ValueError("a weight holds NaN or infinite values: it cannot be rounded to int8")
    scales = largest / _LEVELS
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (weight.float() / steps[:, None]).round().clamp(-_LEVELS, _LEVELS).to(torch.int8), scales


def pack_bits(kept: torch.Tensor) -> torch.Tensor:
    """uint8 (out, 8 * ceil(in / 64)) of a mask, bool (out, in)."""
    rows, columns = kept.shape
    bits = torch.zeros(rows, -(-columns // 64) * 64, dtype=torch.uint8)
    bits[:, :columns] = kept
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    return (bits.unflatten(1, (bits.shape[1] // 8, 8)) * places).sum(dim=2, dtype=torch.uint8)


def unpack_tensor(packed: PackedTensor) -> torch.Tensor:
    """The weight (out, in) in its own dtype: with a float coding, the bits that were packed.

    Raises:
        ValueError: the parts do not fit each other.
    """
    check_tensor(packed)
    if packed.grid is not None:
        return packed.matrix().rows(0, packed.shape[0], torch.float32).to(DTYPES[packed.dtype])
    values = packed.values
    if packed.mask is None:
        weight = values.view(packed.shape)
    else:
        weight = torch.zeros(packed.shape, dtype=values.dtype)
        weight[packed.kept()] = values
    if packed.scales is not None:
        weight = weight.float() * packed.scales[:, None]
    return weight.to(DTYPES[packed.dtype])


def check_tensor(packed: PackedTensor) -> None:
    """Refuse parts that do not fit each other; the kernels rely on it.

    Raises:
        ValueError: it says which part, what came and what was expected.
    """
    rows, columns = packed.shape
    if packed.coding not in CODINGS or packed.dtype not in DTYPES:
        raise ValueError(
            f"coding {packed.coding!r} of dtype {packed.dtype!r} is not known: {CODINGS} of {list(DTYPES)}"
        )
    wanted = VALUES[packed.coding]
    if packed.values.dtype != wanted or packed.values.dim() != 1:
        raise ValueError(
            f"values are {packed.values.dtype}, {tuple(packed.values.shape)}; expected {wanted} in one row"
        )
    count = rows * columns
    if packed.mask is not None:
        shape = (rows, -(-columns // 64) * 8)
        if packed.mask.dtype != torch.uint8 or tuple(packed.mask.shape) != shape:
            raise ValueError(f"the mask is {packed.mask.dtype}, {tuple(packed.mask.shape)}; expected uint8, {shape}")
        last = kept_of(packed.mask[:, -8:], 64)
        if packed.coding in MASKED_CODES:
            last = in_plane_order(last)
        if columns % 64 and bool(last[:, columns % 64 :].any()):
            raise ValueError(f"the mask has bits beyond the last of {columns} columns")
        count = count_bits(packed.mask)
    if packed.coding in SCALES and packed.coding != "int8":
        count = _check_grid(packed, count)
    elif packed.grid is not None:
        raise ValueError(f"a grid belongs to codes, not to {packed.coding}")
    if packed.values.numel() != count:
        raise ValueError(f"there are {packed.values.numel()} values, expected {count} of a weight {packed.shape}")
    scales, dtype = packed.scales, SCALES.get(packed.coding)
    if (scales is not None) != (dtype is not None):
        raise ValueError(f"scales belong to {', '.join(SCALES)} and to nothing else")
    if scales is not None and (scales.dtype != dtype or tuple(scales.shape) != (rows,)):
        raise ValueError(f"scales are {scales.dtype}, {tuple(scales.shape)}; expected {dtype}, {(rows,)}")


def _check_grid(packed: PackedTensor, kept: int) -> int:
    """Refuse what does not fit; the bytes that the codes must have."""
    (rows, columns), grid = packed.shape, packed.grid
    if grid is None:
        raise ValueError(f"{packed.coding} without the grid that its codes stand for")
    levels, scales, bits = grid.levels, grid.column_scales, grid.bits
    if levels.dtype != torch.int8 or tuple(levels.shape) != (LEVELS,):
        raise ValueError(f"levels are {levels.dtype}, {tuple(levels.shape)}; expected torch.int8, {(LEVELS,)}")
    if not bool(((levels >= -LEVEL_OFFSET) & (levels < LEVEL_OFFSET)).all()):
        raise ValueError(f"levels are {levels.tolist()}; expected {-LEVEL_OFFSET} to {LEVEL_OFFSET - 1}")
    if scales is not None and (scales.dtype != torch.bfloat16 or tuple(scales.shape) != (columns,)):
        raise ValueError(
            f"scales of columns are {scales.dtype}, {tuple(scales.shape)}; expected {(columns,)} bfloat16"
        )
    if (packed.coding == "mixed") != (bits is not None) or (packed.mask is None) != (bits is not None):
        raise ValueError("rows of a width of their own belong to mixed codes, and masks to all others")
    if bits is None:
        return MASKED_CODES[packed.coding] * plane_bytes(kept)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (rows,) or not set(bits.tolist()) <= set(WIDTHS):
        raise ValueError(f"widths of codes are {set(bits.tolist())}; expected some of {WIDTHS}, for {rows} rows")
    return int(bytes_of_rows(columns, bits).sum())


def count_bits(mask: torch.Tensor) -> int:
    """Bits that are set in a mask, uint8 (rows, bytes)."""
    return int(bits_of_rows(mask).sum())
