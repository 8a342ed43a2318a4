"""A dense model -> its packed checkpoint, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mamba_prune.packed.config import to_packed
from hf_mamba_prune.packed.files import write_packed
from hf_mamba_prune.packed.tensors import PackedTensor, pack_tensor

VALUES = ("auto", "int8")


def check_values(values: str) -> None:
    """Raises ValueError unless `values` is one of `VALUES`."""
    if values not in VALUES:
        raise ValueError(f"values of a packed checkpoint are {values!r}; expected one of {', '.join(VALUES)}")


def write_packed_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    values: str = "auto",
) -> None:
    """Write the packed checkpoint of a model: weights, config, generation config and tokenizer.

    Projections, embeddings and head are packed, whatever of them is zero; all else is small and stays as it is. A
    weight of -0.0 is written as 0.0.

    Args:
        folder: exists.
        model: a Mamba, Mamba-2 or Falcon-Mamba causal language model.
        tokenizer: saved beside it.
        dtype: of the weights.
        values: of the kept weights: `auto` as they are in `dtype`, or `int8`, with one scale for each row.

    Raises:
        ValueError: another kind of model, unknown values, or int8 of weights that are not finite.
    """
    check_values(values)
    config = to_packed(model.config)
    config.dtype = dtype
    config.architectures = [f"Packed{type(model).__name__}"]
    names = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    tied = {name: first[id(x)] for name, x in names.items() if first.setdefault(id(x), name) != name}
    write_packed(folder, _weights(model, names, tied, dtype, "int8" if values == "int8" else None), tied)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _weights(
    model: nn.Module, names: dict, tied: dict, dtype: torch.dtype, coding: str | None
) -> Iterator[tuple[str, PackedTensor | torch.Tensor]]:
    for name, weight in names.items():
        if name in tied:
            continue
        weight = weight.detach().cpu().to(dtype) + 0.0
        owner = model.get_submodule(name.rpartition(".")[0])
        whole = name.endswith(".weight") and isinstance(owner, nn.Linear | nn.Embedding)
        yield name, pack_tensor(weight, coding) if whole else weight
