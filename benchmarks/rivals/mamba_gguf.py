"""A transformers checkpoint of MambaForCausalLM as a GGUF file, without a vocabulary: models are fed token ids.

Matrices are written in the type that is asked for and everything else in float32, as llama.cpp's own converter has it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, MambaConfig

OUTER = {"backbone.embeddings.weight": "token_embd.weight", "backbone.norm_f.weight": "output_norm.weight"}
HEAD = {"lm_head.weight": "output.weight"}
BLOCK = {
    "norm.weight": "attn_norm.weight",
    "mixer.in_proj.weight": "ssm_in.weight",
    "mixer.conv1d.weight": "ssm_conv1d.weight",
    "mixer.conv1d.bias": "ssm_conv1d.bias",
    "mixer.x_proj.weight": "ssm_x.weight",
    "mixer.dt_proj.weight": "ssm_dt.weight",
    "mixer.dt_proj.bias": "ssm_dt.bias",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj.weight": "ssm_out.weight",
}
PROJECTIONS = {"in_proj": "ssm_in", "x_proj": "ssm_x", "dt_proj": "ssm_dt", "out_proj": "ssm_out"}
FLOAT32 = ("norm.weight", "conv1d.weight", "ssm_a")
"""Endings of what is no vector and still stays in float32."""


def gguf_name(name: str) -> str:
    """State-dict name -> llama.cpp's.

    Raises:
        ValueError: no weight of this architecture.
    """
    if name in OUTER | HEAD:
        return (OUTER | HEAD)[name]
    layer, _, rest = name.removeprefix("backbone.layers.").partition(".")
    if rest not in BLOCK:
        raise ValueError(f"{name} is no weight of MambaForCausalLM without biases of the projections.")
    return f"blk.{layer}.{BLOCK[rest]}"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint with its tied head left out."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    if AutoConfig.from_pretrained(folder).tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


def count_projections(folder: Path) -> int:
    """Weights of all four projections of all blocks."""
    endings = tuple(f".{part}.weight" for part in PROJECTIONS)
    return sum(weight.numel() for name, weight in read_weights(folder).items() if name.endswith(endings))


def write_gguf(folder: Path, path: Path, library: Path, half: bool) -> None:
    """Convert a checkpoint.

    Args:
        folder: of the checkpoint.
        path: the new file.
        library: where PyPI's `gguf` is; see `llama_library.py`.
        half: matrices in float16, as most people convert; otherwise in float32.

    Raises:
        ValueError: a checkpoint of another architecture.
    """
    sys.path.append(str(library))
    import gguf

    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, MambaConfig) or config.model_type != "mamba":
        raise ValueError(f"{folder} holds a {config.model_type} model; only MambaForCausalLM is converted.")
    unfinished = path.with_suffix(".part")  # what is there counts as whole
    writer = gguf.GGUFWriter(str(unfinished), "mamba")
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    for name, weight in read_weights(folder).items():
        values = _values(name, weight)
        small = values.ndim < 2 or gguf_name(name).endswith(FLOAT32)
        writer.add_tensor(gguf_name(name), values.astype(np.float16 if half and not small else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def _values(name: str, weight: torch.Tensor) -> np.ndarray:
    """What llama.cpp keeps of a weight: A itself, and a convolution without its middle axis."""
    weight = weight.float()
    if name.endswith("A_log"):
        weight = -weight.exp()
    if name.endswith("conv1d.weight"):
        weight = weight.squeeze(1)
    return weight.numpy()
