"""Checkpoints in the layout of the `state-spaces` repositories, which transformers no longer reads.

Their config.json has `d_model` and `n_layer` but no `model_type`; the weights are a pickle or safetensors, as they
are or wrapped by a training loop; there is no tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_mamba_prune.files.weights import WHOLE, read_state, weight_files
from hf_mamba_prune.models.fields import check_fields, wrong_field

TOKENIZER = "EleutherAI/gpt-neox-20b"
OLD_NAME = "backbone.embedding."
"""Of the embeddings, in this layout and in early ones of transformers; `backbone.embeddings.` today."""

_VOCABULARY = 50277
"""What the original code takes where a config says nothing."""

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


def convert_config(values: dict, source: str = "the checkpoint") -> MambaConfig | Mamba2Config:
    """config.json of the original layout -> the transformers config of the same model.

    Args:
        values: of config.json.
        source: Hub id or folder, for errors.

    Raises:
        ValueError: the config asks for something that transformers' Mamba does not have, or holds a wrong value.
    """
    given = values.get("ssm_cfg") or {}
    if not isinstance(given, dict):
        raise ValueError(wrong_field(source, "ssm_cfg", given, "a mapping"))
    ssm = dict(given)
    kind = ssm.pop("layer", "Mamba1")
    if values.get("attn_layer_idx") or values.get("d_intermediate"):
        raise ValueError("this checkpoint mixes Mamba with attention or MLP layers, which is not supported.")
    if not values.get("rms_norm", True) or kind not in ("Mamba1", "Mamba2"):
        raise ValueError(f"this checkpoint has ssm_cfg.layer {kind!r} and rms_norm {values.get('rms_norm')}; expected "
                         "'Mamba1' or 'Mamba2' with RMSNorm.")  # fmt: skip
    other = {name: value for name, value in ssm.items() if name not in _READ and value not in _ONLY.get(name, ())}
    if other:
        raise ValueError(f"this checkpoint has {other} in its ssm_cfg, which transformers' Mamba cannot do.")
    common = dict(
        hidden_size=values["d_model"],
        num_hidden_layers=values["n_layer"],
        vocab_size=_padded_vocabulary(values, source),
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
    check_fields(common, source)
    if kind == "Mamba1":
        own = dict(state_size=ssm.get("d_state", 16), time_step_rank=ssm.get("dt_rank", "auto"))
        check_fields(own, source)
        return MambaConfig(**own, **common)
    own = dict(
        state_size=ssm.get("d_state", 128),
        head_dim=ssm.get("headdim", 64),
        n_groups=ssm.get("ngroups", 1),
        chunk_size=ssm.get("chunk_size", 256),
        time_step_limit=ssm.get("dt_limit", (0.0, math.inf)),
    )
    check_fields(own, source)
    inner = common["expand"] * common["hidden_size"]
    heads = inner // own["head_dim"]
    if heads * own["head_dim"] != inner or heads % own["n_groups"]:
        raise ValueError(f"config.json of {source} has headdim {own['head_dim']} and ngroups {own['n_groups']}, which "
                         f"do not divide its {inner} channels.")  # fmt: skip
    own["time_step_limit"] = tuple(own["time_step_limit"])
    return Mamba2Config(num_heads=heads, **own, **common)


def _padded_vocabulary(values: dict, source: str) -> int:
    """Rows of the embeddings: the original code pads them."""
    size, multiple = values.get("vocab_size", _VOCABULARY), values.get("pad_vocab_size_multiple", 8)
    check_fields({"vocab_size": size}, source)
    if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
        raise ValueError(wrong_field(source, "pad_vocab_size_multiple", multiple, "a whole number of at least 1"))
    return -(-size // multiple) * multiple


def load_original(folder: Path, config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    """Build the transformers model of a folder whose weights have other names, with every weight accounted for.

    Args:
        folder: holds the weights.
        config: of the model.
        dtype: of the model; None means that of the checkpoint.

    Raises:
        ValueError: no weights, a file that holds more than tensors, or keys that do not fit the config.
    """
    paths = weight_files(folder)
    if not paths:
        raise ValueError(f"{folder} is in the original state-spaces layout but holds no {' or '.join(WHOLE)}.")
    state = {key.replace(OLD_NAME, "backbone.embeddings."): v for path in paths for key, v in read_state(path).items()}
    if config.tie_word_embeddings and "backbone.embeddings.weight" in state:
        state["lm_head.weight"] = state["backbone.embeddings.weight"]
    norm = state.get("backbone.norm_f.weight", torch.empty(0))
    config.dtype = dtype or norm.dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _check_fit(paths[0].name if len(paths) == 1 else str(folder), model.state_dict(), state)
    model = model.to_empty(device="cpu").to(config.dtype)
    model.load_state_dict(state, strict=True)
    model.tie_weights()
    return model.eval()


def _check_fit(what: str, wanted: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor]) -> None:
    both = wanted.keys() & held.keys()
    problems = {
        "missing": wanted.keys() - held.keys(),
        "unexpected": held.keys() - wanted.keys(),
        "mismatched": {name for name in both if wanted[name].shape != held[name].shape},
    }
    for kind, names in problems.items():
        if names:
            raise ValueError(
                f"{what} does not fit its config.json: {len(names)} {kind} keys, such as "
                f"{', '.join(sorted(names)[:3])}."
            )
