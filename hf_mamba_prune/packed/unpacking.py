"""The step of transformers' loader that makes a dense weight of a blob."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import ConversionOps

from hf_mamba_prune.codings.blobs import from_blob
from hf_mamba_prune.codings.storage import in_memory
from hf_mamba_prune.codings.tensors import unpack_tensor

if TYPE_CHECKING:
    from hf_mamba_prune.packed.quantizer import PackedQuantizer


class Unpack(ConversionOps):
    """A blob -> its weight; another tensor as it is. Both in the dtype that the model is loaded in."""

    def __init__(self, hf_quantizer: PackedQuantizer):
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *_: Any, full_layer_name: str = "", **__: Any) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        dense = (
            unpack_tensor(from_blob(in_memory(tensor.cpu()))).to(tensor.device)
            if tensor.dtype == torch.uint8
            else tensor
        )
        return {full_layer_name: dense.to(self.hf_quantizer.dtype)}
