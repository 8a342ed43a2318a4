"""What is known of a packed checkpoint beside its weights: checksums, and the config that the kernels rely on.

The index is JSON, in the shards as one tensor more: what stands in their heads is written in an order that changes.
config.json holds its checksum, and it holds those of all tensors, so that one look says whether config, index and
tensors are those that were written together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hf_mamba_prune.codings.blobs import BlobHead, from_blob
from hf_mamba_prune.codings.storage import head_of, in_memory
from hf_mamba_prune.codings.tensors import check_tensor
from hf_mamba_prune.models.architectures import architecture_of
from hf_mamba_prune.models.model_config import ModelConfig
from hf_mamba_prune.packed.config import PackedConfig

INDEX_NAME = "packed_index"
_AGAIN = "get the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class CheckedFiles:
    """Shards that are whole and unchanged.

    Args:
        blobs: heads of the packed weights, by name.
        lengths: of their bytes.
        shapes: of all other tensors, by name.
    """

    blobs: dict[str, BlobHead]
    lengths: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def relied_on(config: ModelConfig) -> dict[str, object]:
    """The fields of a config that decide what blocks compute beside the shapes of their weights.

    Raises:
        ValueError: the model is of a type that the table does not hold.
    """
    fields = {name: getattr(config, name) for name in architecture_of(config).fields}
    return json.loads(json.dumps(fields))  # as they look when they are read


def make_index(config: ModelConfig, dtype: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The index, uint8 in one dimension, of tensors that are about to be written, packed in a dtype of that name."""
    sums = {name: sha256_of(tensor) for name, tensor in tensors.items()}
    index = {"config": relied_on(config), "dtype": dtype, "sha256": sums}
    return torch.frombuffer(bytearray(json.dumps(index, sort_keys=True).encode()), dtype=torch.uint8)


def sha256_of(tensor: torch.Tensor) -> str:
    """Checksum of a tensor: of its bytes, its dtype and its shape."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_files(files: list[str], config: ModelConfig, described: PackedConfig) -> CheckedFiles:
    """Read packed shards whole and compare them with what was written.

    Args:
        files: paths of all shards.
        config: as it was read.
        described: the quantization_config in it.

    Raises:
        ValueError: a shard is damaged or missing, or config.json, index and tensors do not belong together.
    """
    sums = _read_index(files, config, described)
    blobs: dict[str, BlobHead] = {}
    lengths: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        for name, tensor in _tensors(path):
            if name in blobs or name in shapes or sums.get(name) != sha256_of(tensor):
                raise ValueError(
                    f"{name} in {Path(path).name} does not have its checksum: it was changed or damaged, {_AGAIN}"
                )
            if tensor.dtype == torch.uint8:
                blobs[name] = _head(name, tensor, whole=described.unpack is True)
                lengths[name] = tensor.numel()
            else:
                shapes[name] = tuple(tensor.shape)
    missing = sorted(sums.keys() - blobs.keys() - shapes.keys())
    if missing:
        raise ValueError(f"the shards lack {len(missing)} tensors, such as {missing[0]}: {_AGAIN}")
    return CheckedFiles(blobs=blobs, lengths=lengths, shapes=shapes)


def _tensors(path: str, index: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a shard, or its index alone where it is in it; one tensor at a time is in memory."""
    try:
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():
                if (name == INDEX_NAME) == index:
                    yield name, shard.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{Path(path).name} is damaged or was cut short, {_AGAIN}: {error}") from error


def _read_index(files: list[str], config: ModelConfig, described: PackedConfig) -> dict[str, str]:
    """Checksums of all tensors by name."""
    indexes = [tensor for path in files for _, tensor in _tensors(path, index=True)]
    if len(indexes) != 1 or sha256_of(indexes[0]) != described.sha256:
        raise ValueError(
            f"config.json and the weights were not written together: its checksum is not that of their index, {_AGAIN}"
        )
    try:
        found = json.loads(indexes[0].numpy().tobytes())
        stated, sums = dict(found["config"]) | {"dtype": found["dtype"]}, dict(found["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the index of the weights is damaged ({error!r}): {_AGAIN}") from error
    fields = relied_on(config) | {"dtype": described.dtype}
    for name, wanted in stated.items():
        have = fields.get(name)
        if have != wanted:
            raise ValueError(f"config.json says {name}={have!r}, and the weights were packed with {wanted!r}")
    return sums


def _head(name: str, blob: torch.Tensor, whole: bool) -> BlobHead:
    """With `whole`, all of it is checked: of what goes wrong while it unpacks, transformers tells nothing."""
    try:
        if whole:
            with torch.device(blob.device):  # the loader makes new tensors elsewhere
                check_tensor(from_blob(in_memory(blob)))
        return head_of(blob)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
