"""Checkpoints in the layout of the `state-spaces` repositories, which transformers no longer reads.

Their config.json has `d_model` and `n_layer` but no `model_type`; the weights are a pickle; there is no tokenizer.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

TOKENIZER = "EleutherAI/gpt-neox-20b"
WEIGHTS = "pytorch_model.bin"

# Of ssm_cfg: what is read, or only says how a training begins or which code runs.
_READ = frozenset(
    "d_state d_conv expand bias conv_bias dt_rank headdim ngroups chunk_size dt_limit dt_min dt_max dt_init dt_scale "
    "dt_init_floor A_init_range conv_init use_fast_path use_mem_eff_path".split()
)
# What transformers does too, as far as it has these values.
_ONLY = {
    "activation": ("silu", "swish"), "rmsnorm": (True,), "norm_before_gate": (False,), "D_has_hdim": (False,),
    "d_ssm": (None,),
}  # fmt: skip


def is_original_layout(values: dict) -> bool:
    """Whether a config.json is of the original layout."""
    return "model_type" not in values and "d_model" in values and "n_layer" in values


def convert_config(values: dict) -> MambaConfig | Mamba2Config:
    """config.json of the original layout -> the transformers config of the same model.

    Raises:
        ValueError: the config asks for something that transformers' Mamba does not have.
    """
    ssm = dict(values.get("ssm_cfg") or {})
    kind = ssm.pop("layer", "Mamba1")
    if values.get("attn_layer_idx") or values.get("d_intermediate"):
        raise ValueError("this checkpoint mixes Mamba with attention or MLP layers, which is not supported.")
    if not values.get("rms_norm", True) or kind not in ("Mamba1", "Mamba2"):
        raise ValueError(f"this checkpoint has ssm_cfg.layer {kind!r} and rms_norm {values.get('rms_norm')}; expected "
                         "'Mamba1' or 'Mamba2' with RMSNorm.")  # fmt: skip
    other = {name: value for name, value in ssm.items() if name not in _READ and value not in _ONLY.get(name, ())}
    if other:
        raise ValueError(f"this checkpoint has {other} in its ssm_cfg, which transformers' Mamba cannot do.")
    multiple = values.get("pad_vocab_size_multiple", 8)
    common = dict(
        hidden_size=values["d_model"],
        num_hidden_layers=values["n_layer"],
        vocab_size=-(-values["vocab_size"] // multiple) * multiple,
        expand=ssm.get("expand", 2),
        conv_kernel=ssm.get("d_conv", 4),
        use_bias=ssm.get("bias", False),
        use_conv_bias=ssm.get("conv_bias", True),
        residual_in_fp32=values.get("residual_in_fp32", True),
        tie_word_embeddings=values.get("tie_embeddings", True),
        layer_norm_epsilon=values.get("norm_epsilon", 1e-5),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    if kind == "Mamba1":
        return MambaConfig(state_size=ssm.get("d_state", 16), time_step_rank=ssm.get("dt_rank", "auto"), **common)
    head_dim = ssm.get("headdim", 64)
    return Mamba2Config(
        state_size=ssm.get("d_state", 128),
        head_dim=head_dim,
        num_heads=common["expand"] * common["hidden_size"] // head_dim,
        n_groups=ssm.get("ngroups", 1),
        chunk_size=ssm.get("chunk_size", 256),
        time_step_limit=tuple(ssm.get("dt_limit", (0.0, math.inf))),
        **common,
    )


def load_original(folder: Path, values: dict, dtype: torch.dtype | None) -> PreTrainedModel:
    """Build the transformers model of a folder in the original layout, with every weight accounted for.

    The pickle is read with `weights_only`, which executes nothing.

    Args:
        folder: holds `pytorch_model.bin`.
        values: its config.json.
        dtype: of the model; None means that of the checkpoint.

    Raises:
        ValueError: no weights, a pickle that holds more than tensors, or keys that do not fit the config.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} is in the original state-spaces layout but holds no {WEIGHTS}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole checkpoint of plain tensors: damaged, or more than that.") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a whole checkpoint of plain tensors: it holds something else.")
    state = {key.replace("backbone.embedding.", "backbone.embeddings."): value for key, value in state.items()}
    config = convert_config(values)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state.get("backbone.embeddings.weight")
    norm = state.get("backbone.norm_f.weight", torch.empty(0))
    config.dtype = dtype or norm.dtype
    kind = MambaForCausalLM if config.model_type == "mamba" else Mamba2ForCausalLM
    with torch.device("meta"):
        model = kind(config)
    model = model.to_empty(device="cpu").to(config.dtype)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its config.json: {error}") from error
    model.tie_weights()
    return model.eval()
