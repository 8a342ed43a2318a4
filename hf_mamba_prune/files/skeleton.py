"""The model without its weights, made only where its config fits the weights that there are."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_mamba_prune.files.configs import MOST_LAYERS, build_config, read_config
from hf_mamba_prune.files.fetching import fetch
from hf_mamba_prune.files.weights import Held, held_in

_SLACK = 1 << 20
"""Weights that a config may describe beyond twice those in the files: few enough to build and say what is missing."""


def load_skeleton(source: str, revision: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device: enough to count and to plan.

    Raises:
        ValueError: no such model, not a supported one, or its config does not fit the weights in its folder.
        RuntimeError: the Hub cannot be reached or refuses.
    """
    folder, _ = fetch(source, revision)
    return build_skeleton(folder, source)[0]


def build_skeleton(folder: Path, source: str) -> tuple[PreTrainedModel, Held | None]:
    """The model of a folder on the meta device, and what the headers of its weights say.

    Sizes of a config are compared with those headers before anything of such a size is made.

    Raises:
        ValueError: see `load_skeleton`.
    """
    values = read_config(folder, source)
    held = held_in(folder)
    blocks = values.get("num_hidden_layers", values.get("n_layer"))
    if isinstance(blocks, int) and blocks > (most := MOST_LAYERS if held is None else held.blocks):
        there = f"at most {most} blocks" if held is None else f"its weights, which hold {most} blocks"
        raise ValueError(f"config.json of {source} does not fit: it describes {blocks:,} blocks; expected {there}.")
    config = build_config(folder, values, source)
    if values.get("quantization_config"):
        del config.quantization_config  # the model is made dense
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (RuntimeError, ArithmeticError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"config.json of {source} describes no model that can be: {reason}.") from error
    model.tie_weights()
    wanted = sum(parameter.numel() for parameter in model.parameters())
    # A byte of the packed form holds the mask of eight weights, and at least some of their values.
    factor = 16 if values.get("quantization_config") else 2
    if held is not None and wanted > factor * held.weights + _SLACK:
        raise ValueError(
            f"config.json of {source} does not fit its weights: it describes {wanted:,} of them, and the files hold "
            f"{held.weights:,}."
        )
    return model, held
