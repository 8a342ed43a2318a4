"""Dense modules -> packed ones."""

from __future__ import annotations

import torch
from torch import nn

from hf_mamba_prune.codings.blobs import to_blob
from hf_mamba_prune.codings.grids import grid_of, is_rounded
from hf_mamba_prune.codings.tensors import pack_tensor
from hf_mamba_prune.packed.modules import PackedWeight, packed_like


def pack_into(target: nn.Module, source: nn.Module, dtype: torch.dtype, values: str) -> None:
    """Give a model the weights of another, or its own, in packed form.

    Projections, embeddings and head are packed, whatever of them is zero; all else is small and becomes float32. A
    weight of -0.0 becomes 0.0.

    Args:
        target: of the same class as `source`, its weights on the meta device; or `source` itself.
        source: in any float dtype.
        dtype: in which its weights are packed.
        values: as in `PackedConfig`.

    Raises:
        ValueError: int8 of weights that are not finite, or rounded ones where none is, or one has changed since.
    """
    if values == "rounded" and not is_rounded(source):
        raise ValueError(
            "values='rounded' packs what pruning has just rounded, and no weight of this model is: round it with "
            "bits, size or code_bits of a PruningConfig, or pack it with values='auto' or 'int8'"
        )
    blobs: dict[int, PackedWeight] = {}
    for name, module in list(source.named_modules()):
        place, whole = target.get_submodule(name), isinstance(module, nn.Linear | nn.Embedding)
        if isinstance(module, nn.Linear | nn.Embedding):
            if id(module.weight) not in blobs:
                grid = grid_of(source, f"{name}.weight") if values == "rounded" else None
                packed = grid or pack_tensor(_rounded(module.weight, dtype), "int8" if values == "int8" else None)
                blobs[id(module.weight)] = PackedWeight(to_blob(packed))
            place = packed_like(module, blobs[id(module.weight)])
            target.set_submodule(name, place)
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if not (whole and leaf == "weight"):
                setattr(place, leaf, nn.Parameter(_rounded(parameter, dtype).float()))
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            setattr(place, leaf, buffer.detach().cpu().float())


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().cpu().to(dtype) + 0.0
