"""A dense model -> its packed checkpoint, and a packed checkpoint -> a model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.fields import check_fields
from hf_mamba_prune.models.model_config import config_of
from hf_mamba_prune.packed.config import METHOD, check_values
from hf_mamba_prune.packed.packing import pack_into
from hf_mamba_prune.packed.quantizer import become_packed


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed checkpoint of this version."""
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8")).get("quantization_config") if path.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):  # whoever reads it says what is wrong
        return False
    return isinstance(described, dict) and described.get("quant_method") == METHOD


def pack_model(model: PreTrainedModel, dtype: torch.dtype, values: str = "auto") -> PreTrainedModel:
    """A packed copy of a model, as `pack_into` makes it; the model stays as it is.

    Args:
        model: of a type that the table of architectures holds.
        dtype: in which its weights are packed.
        values: of the kept weights: `auto` as they are in `dtype`, or `int8`, with one scale for each row.

    Raises:
        ValueError: another kind of model, unknown values, or int8 of weights that are not finite.
    """
    check_values(values)
    architecture_of(config_of(model))
    with torch.device("meta"):
        packed = type(model)(copy.deepcopy(model.config))
    pack_into(packed, model, dtype, values)
    packed.generation_config = copy.deepcopy(model.generation_config)
    return become_packed(packed, values, str(dtype).removeprefix("torch."))


def write_packed_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    values: str = "auto",
) -> None:
    """Write the packed checkpoint of a model: weights, config, generation config and tokenizer.

    Args:
        folder: where to; made where it does not exist.
        model, dtype, values: as in `pack_model`.
        tokenizer: saved beside it.

    Raises:
        ValueError: another kind of model, unknown values, or int8 of weights that are not finite.
    """
    pack_model(model, dtype, values).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_packed(folder: Path | str, unpack: bool | None = None, **options: Any) -> PreTrainedModel:
    """What `AutoModelForCausalLM.from_pretrained` gives, without transformers' remark that `unpack` was chosen.

    Args:
        folder: of a packed checkpoint, or a Hub id.
        unpack: as in `PackedConfig`.
        options: of `from_pretrained`.

    Raises:
        ValueError: a config that cannot be, or files that are damaged.
    """
    config = _config(folder)
    config.quantization_config = config.quantization_config | {"unpack": unpack}
    return AutoModelForCausalLM.from_pretrained(folder, config=config, trust_remote_code=False, **options)


def _config(folder: Path | str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (StrictDataclassError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config.json of {folder} cannot be used: {reason[:200]}.") from error
    check_fields(config.to_dict(), str(folder))
    return config
