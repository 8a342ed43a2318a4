"""The first packed format, packed.json beside shards of parts: read to be written anew, and not otherwise."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from hf_mamba_prune.codings.blobs import to_blob
from hf_mamba_prune.codings.tensors import PackedTensor
from hf_mamba_prune.packed.modules import PackedWeight, packed_like
from hf_mamba_prune.packed.quantizer import become_packed

INDEX_NAME = "packed.json"

_PREFIX, _CLASS_PREFIX = "packed_", "Packed"
_SHARD = re.compile(r"packed-\d{5}-of-\d{5}\.safetensors")


def is_version_1(folder: Path) -> bool:
    """Whether a folder holds a packed checkpoint of the first version."""
    return (folder / INDEX_NAME).is_file()


def convert_version_1(folder: Path, output: Path) -> None:
    """Write a checkpoint of the first version in today's, its weights bit for bit the same, without its tokenizer.

    Args:
        folder: that holds it.
        output: where to; made where it does not exist.

    Raises:
        ValueError: it is damaged or incomplete, or does not fit its config.
    """
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        values, _ = PreTrainedConfig.get_config_dict(folder)
        kind = values.pop("model_type").removeprefix(_PREFIX)
        values["architectures"] = [name.removeprefix(_CLASS_PREFIX) for name in values.pop("architectures")]
        tensors = dict(_read(folder, index))
        tensors |= {tied: tensors[source] for tied, source in index["tied"].items()}
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
        for name in model.state_dict():
            _put(model, name, tensors.pop(name))
    except (KeyError, TypeError, AttributeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the packed files of version 1 in {folder} are damaged: {error!r}, get them again"
        ) from error
    if tensors:
        raise ValueError(f"{folder} holds {len(tensors)} weights that its config.json has no place for")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    packed = [entry for entry in index["tensors"].values() if "coding" in entry]
    coding = "int8" if all(entry["coding"] == "int8" for entry in packed) else "auto"
    become_packed(model, coding, packed[0]["dtype"]).save_pretrained(output)


def _read(folder: Path, index: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor | nn.Parameter]]:
    """Each tensor by name, from shards that have their checksums."""
    for shard, facts in index["files"].items():
        if not _SHARD.fullmatch(shard) or _sha256(folder / shard) != facts["sha256"]:
            raise ValueError(f"{shard} does not have its checksum")
        with safe_open(folder / shard, framework="pt") as found:
            for name, entry in index["tensors"].items():
                if entry["file"] == shard:
                    parts = {part: found.get_tensor(f"{name}.{part}") for part in entry.get("parts", ())}
                    yield name, _blob(entry, parts) if "coding" in entry else found.get_tensor(name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _blob(entry: dict[str, Any], parts: dict[str, torch.Tensor]) -> PackedWeight:
    rows, columns = entry["shape"]
    mask = parts.get("mask")
    if mask is not None:  # rows were filled up to bytes, and are now to 64 bits
        mask = nn.functional.pad(mask, (0, -(-columns // 64) * 8 - mask.shape[1]))
    packed = PackedTensor(
        shape=(rows, columns),
        dtype=entry["dtype"],
        coding=entry["coding"],
        mask=mask,
        values=parts["values"],
        scales=parts.get("scales"),
    )
    return PackedWeight(to_blob(packed))


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    if tensor.size() != getattr(module, leaf).size():
        raise ValueError(f"{name} is {tuple(tensor.size())}, its config says {tuple(getattr(module, leaf).size())}")
    if isinstance(tensor, PackedWeight):
        model.set_submodule(owner, packed_like(module, tensor))
    else:
        setattr(module, leaf, nn.Parameter(tensor.float()))
