"""The packed checkpoint, a third of the size, and the models that run it fast on a CPU."""

from hf_mamba_prune.packed.checkpoint import check_values, write_packed_model
from hf_mamba_prune.packed.files import INDEX_NAME, is_packed, read_packed
from hf_mamba_prune.packed.model import (
    PackedFalconMambaForCausalLM,
    PackedMamba2ForCausalLM,
    PackedMambaForCausalLM,
    register,
)
from hf_mamba_prune.packed.tensors import PackedTensor, pack_tensor, unpack_tensor

__all__ = [
    "INDEX_NAME",
    "PackedFalconMambaForCausalLM",
    "PackedMamba2ForCausalLM",
    "PackedMambaForCausalLM",
    "PackedTensor",
    "check_values",
    "is_packed",
    "pack_tensor",
    "read_packed",
    "register",
    "unpack_tensor",
    "write_packed_model",
]
