"""Synthetic checkpoints in the original state-spaces layout, made from transformers models."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def original_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights under the names that the original code gives them."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return {name.replace("backbone.embeddings.", "backbone.embedding."): tensor for name, tensor in state.items()}


def original_config(model: PreTrainedModel) -> dict:
    """config.json as the original code writes it."""
    config = model.config
    ssm = {"d_state": config.state_size, "d_conv": config.conv_kernel, "expand": config.expand}
    if config.model_type == "mamba":
        ssm |= {"dt_rank": config.time_step_rank}
    else:
        ssm |= {"layer": "Mamba2", "headdim": config.head_dim, "ngroups": config.n_groups}
        ssm |= {"chunk_size": config.chunk_size}
    return {
        "d_model": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "vocab_size": config.vocab_size - 3,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": ssm,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "tie_embeddings": config.tie_word_embeddings,
    }


def write_original(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None) -> dict:
    """Write config.json and pytorch_model.bin, and a tokenizer when there is one; the config's values come back."""
    folder.mkdir(parents=True, exist_ok=True)
    values = original_config(model)
    (folder / "config.json").write_text(json.dumps(values))
    torch.save(original_state(model), folder / "pytorch_model.bin")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return values
