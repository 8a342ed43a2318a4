"""config.json of a model, read and checked once, before anything is built of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_mamba_prune.files.state_spaces import convert_config, is_original_layout
from hf_mamba_prune.files.version_1 import is_version_1
from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.models.fields import check_fields, wrong_field
from hf_mamba_prune.packed.config import METHOD
from hf_mamba_prune.reading import read_json

MOST_LAYERS = 1000
"""Blocks of a model whose weights are not at hand to count them by."""

_KERNEL_KEYS = ("use_kernels", "kernel_config", "kernels", "experts_implementation")
_ATTENTION = ("attn_implementation", "_attn_implementation")


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """config.json of a supported model, with nothing in it that cannot be.

    Args:
        folder: that holds it.
        source: Hub id or folder, as the user wrote it.

    Raises:
        ValueError: missing, not JSON, of a model that is not a supported state-space model, quantized, or with a value
            that such a model cannot have.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{source} holds no config.json: it is not a model.")
    values = read_json(path, f"config.json of {source}")
    kind = values.get("model_type") if isinstance(values, dict) else None
    known = isinstance(kind, str) and kind in ARCHITECTURES
    if is_version_1(folder):
        raise ValueError(f"{source} is of version 1 of the packed format: `hf-mamba-prune pack {source}` converts it.")
    if not isinstance(values, dict) or not (known or is_original_layout(values)):
        raise ValueError(
            f"{source} is a model of type {kind!r}, which is not a supported state-space model. "
            f"Supported: {', '.join(ARCHITECTURES)}."
        )
    _refuse_quantized(values, source)
    if known:
        _check_fields(values, str(kind), source)
    return values


def _refuse_quantized(values: dict[str, Any], source: str) -> None:
    for key in ("quantization_config", "compression_config"):
        found = values.get(key)
        if found is None:
            continue
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method == METHOD:
            continue
        bits = [f"{found[name]}-bit" for name in ("bits", "w_bit") if isinstance(found, dict) and found.get(name)]
        bits += [f"{n}-bit" for n in (4, 8) if isinstance(found, dict) and found.get(f"load_in_{n}bit") is True]
        name = method if isinstance(method, str) else "an unknown method" if isinstance(found, dict) else repr(found)
        raise ValueError(
            f"{source} is quantized ({', '.join([str(name), *bits[:1]])}), so its weights are codes and not numbers "
            "that could be pruned: take the model that it was made from."
        )


def _check_fields(values: dict[str, Any], kind: str, source: str) -> None:
    check_fields(values, source)
    for name in _KERNEL_KEYS:
        if values.get(name):
            raise ValueError(
                wrong_field(source, name, values[name], "none: which kernels run a model is not its own choice")
            )
    for name in _ATTENTION:
        if values.get(name) not in (None, "eager"):
            raise ValueError(wrong_field(source, name, values[name], "none: a state-space model has no attention"))
    own = CONFIG_MAPPING[kind]
    for name in values:
        if hasattr(own, name) and name not in _fields_of(own):
            raise ValueError(f"config.json of {source} has {name!r}, which is no setting of a model: take it out.")
    _check_together(own, values, source)


def _fields_of(kind: type[PreTrainedConfig]) -> set[str]:
    """Settings of a config class: what it writes, and what it reads under another name."""
    return {*kind().to_dict(), *_ATTENTION, "torch_dtype", "num_labels", "name_or_path", "return_dict", "layer_types"}


def _check_together(kind: type[PreTrainedConfig], values: dict[str, Any], source: str) -> None:
    """Of Mamba-2, whose heads divide the channels, and whose groups divide the heads."""
    if "num_heads" not in _fields_of(kind):
        return
    hidden, expand, heads, dim, groups = (
        values.get(name, getattr(kind, name))
        for name in ("hidden_size", "expand", "num_heads", "head_dim", "n_groups")
    )
    if expand * hidden != heads * dim or heads % groups:
        raise ValueError(
            f"config.json of {source} has expand {expand} x hidden_size {hidden}, num_heads {heads} x head_dim {dim} "
            f"and n_groups {groups}; expected the two products to be equal, and groups that divide the heads."
        )


def build_config(folder: Path, values: dict[str, Any], source: str) -> PreTrainedConfig:
    """The transformers config of what `read_config` gave, of the original layout too.

    Raises:
        ValueError: transformers refuses it.
    """
    if is_original_layout(values):
        return convert_config(values)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError, ArithmeticError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config.json of {source} cannot be used: {reason[:200]}.") from error
