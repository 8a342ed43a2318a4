"""The grids that a model's weights were rounded to: kept with the model until it is packed, so that no bit is lost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hf_mamba_prune.codings.tensors import DTYPES, PackedTensor, pack_bits, unpack_tensor
from hf_mamba_prune.native.codes import Grid, encode_matrix, encode_planes, in_plane_order

_OWN = "_hf_mamba_prune_grids"


def coded_tensor(
    codes: torch.Tensor,
    bits: torch.Tensor,
    levels: torch.Tensor,
    *,
    scales: torch.Tensor,
    column_scales: torch.Tensor | None,
    dtype: torch.dtype,
    keep: torch.Tensor | None = None,
) -> PackedTensor:
    """A weight on its grid in packed form.

    Args:
        codes: uint8 (out, in), places in the table of the row's width.
        bits: uint8 (out,), width of each row's codes; one for all under a mask.
        levels: int8 (LEVELS,), the tables.
        scales, column_scales: bfloat16 (out,) and (in,); no scales of columns are 1.
        dtype: of the weight that it stands for.
        keep: bool (out, in); None: every weight is held.

    Raises:
        ValueError: rows of several widths under a mask.
    """
    rows, columns = codes.shape
    name = next(name for name, own in DTYPES.items() if own == dtype)
    if keep is not None and len(set(bits.tolist())) > 1:
        raise ValueError(f"under a mask all rows have codes of one width, these have {sorted(set(bits.tolist()))}")
    width = int(bits[0]) if keep is not None and rows else 0
    if keep is not None:
        codes, keep = in_plane_order(codes), in_plane_order(keep)
    return PackedTensor(
        shape=(rows, columns),
        dtype=name,
        coding="mixed" if keep is None else f"int{width}",
        mask=None if keep is None else pack_bits(keep),
        values=encode_matrix(codes, bits) if keep is None else encode_planes(codes[keep], width),
        scales=scales,
        grid=Grid(levels=levels, column_scales=column_scales, bits=bits if keep is None else None),
    )


@torch.no_grad()
def put_on_grids(model: nn.Module, tensors: Mapping[str, PackedTensor]) -> None:
    """Write what packed weights stand for into a model, and keep them with it until it is packed.

    Args:
        model: dense, in any float dtype.
        tensors: by the names of its parameters.
    """
    for name, packed in tensors.items():
        model.get_parameter(name).copy_(unpack_tensor(packed))
    vars(model)[_OWN] = dict(tensors)


def rows_without_codes(model: nn.Module, name: str) -> torch.Tensor | None:
    """bool (out,), rows of a rounded weight that are zero for good; None where it was not rounded, or has a mask.

    Other zeros of such a weight are levels, as good as any.
    """
    packed = vars(model).get(_OWN, {}).get(name)
    grid = None if packed is None else packed.grid
    return None if grid is None or grid.bits is None else grid.bits == 0


def is_rounded(model: nn.Module) -> bool:
    """Whether any weight of a model was put on a grid."""
    return bool(vars(model).get(_OWN))


def grids_of(model: nn.Module) -> dict[str, PackedTensor]:
    """What weights of a model were rounded to, by name; empty where none was.

    Raises:
        ValueError: one has changed since.
    """
    return {name: packed for name in vars(model).get(_OWN, {}) if (packed := grid_of(model, name)) is not None}


def grid_of(model: nn.Module, name: str) -> PackedTensor | None:
    """What a weight was rounded to; None where it was not.

    Raises:
        ValueError: the weight has changed since.
    """
    packed = vars(model).get(_OWN, {}).get(name)
    if packed is None:
        return None
    weight = model.get_parameter(name).detach().cpu()
    if not torch.equal(weight, unpack_tensor(packed).to(weight.dtype)):
        raise ValueError(
            f"{name} has changed since it was rounded, so that its levels are not those of the grid: round it again, "
            "or pack it with values='auto' or 'int8'"
        )
    return packed
