"""Packed weights on disk: safetensors shards with checksums under one small index, read back whole or refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_mamba_prune.packed.tensors import DTYPES, PackedTensor, check_tensor

INDEX_NAME = "packed.json"
FORMAT = "hf-mamba-prune-packed"
VERSION = 1
SHARD_BYTES = 4 << 30

_SHARD = re.compile(r"packed-\d{5}-of-\d{5}\.safetensors")
_PARTS = ("mask", "values", "scales")


@dataclass(frozen=True, kw_only=True)
class PackedFiles:
    """The index of a packed checkpoint whose shards are all there, whole and unchanged.

    Args:
        folder: where they are.
        tensors: for each weight its shape, dtype and shard; a packed one has its coding and its parts too.
        tied: names of weights that are the same as others.
    """

    folder: Path
    tensors: dict[str, dict]
    tied: dict[str, str]

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        names = {entry["file"] for entry in self.tensors.values()}
        return sum((self.folder / name).stat().st_size for name in names)

    def __iter__(self) -> Iterator[tuple[str, PackedTensor | torch.Tensor]]:
        """Each weight by name, packed or as it is; one at a time is in memory."""
        shards: dict[str, list[str]] = {}
        for name, entry in self.tensors.items():
            shards.setdefault(entry["file"], []).append(name)
        for shard, names in shards.items():
            try:
                with safe_open(self.folder / shard, framework="pt") as found:
                    for name in names:
                        yield name, _read(name, self.tensors[name], found)
            except SafetensorError as error:
                raise ValueError(f"{shard} is damaged: {error}") from error
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{INDEX_NAME} is damaged: what it says of a weight is not whole ({error})"
                ) from error


def _read(name: str, entry: dict, found) -> PackedTensor | torch.Tensor:
    if "coding" not in entry:
        tensor = found.get_tensor(name)
        if list(tensor.shape) != entry["shape"] or tensor.dtype != DTYPES.get(entry["dtype"]):
            raise ValueError(f"{name} is {tuple(tensor.shape)}, {tensor.dtype}; the index says {entry}")
        return tensor
    parts = {part: found.get_tensor(f"{name}.{part}") for part in _PARTS if part in entry["parts"]}
    packed = PackedTensor(
        shape=tuple(entry["shape"]),
        dtype=entry["dtype"],
        coding=entry["coding"],
        mask=parts.get("mask"),
        values=parts["values"],
        scales=parts.get("scales"),
    )
    try:
        check_tensor(packed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return packed


def write_packed(
    folder: Path,
    weights: Iterable[tuple[str, PackedTensor | torch.Tensor]],
    tied: dict[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write packed weights into a folder: shards first, the index last.

    Args:
        folder: exists.
        weights: name and weight, packed or as it is.
        tied: names of weights that are the same as others, which alone are written.
        shard_bytes: a shard is closed when it has reached this size.
    """
    tensors, shards, held, size = {}, [], {}, 0

    def close() -> None:
        path = folder / f"packed-{len(shards) + 1:05d}.part"
        save_file(held, path, metadata={"format": FORMAT, "version": str(VERSION)})
        shards.append(path)

    for name, weight in weights:
        parts, entry = _parts(name, weight)
        tensors[name] = entry | {"file": len(shards)}
        held |= parts
        size += sum(part.numel() * part.element_size() for part in parts.values())
        if size >= shard_bytes:
            close()
            held, size = {}, 0
    if held:
        close()
    names = [f"packed-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = {}
    for path, name in zip(shards, names, strict=True):
        path.rename(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    for entry in tensors.values():
        entry["file"] = names[entry["file"]]
    index = {"format": FORMAT, "version": VERSION, "files": files, "tied": tied, "tensors": tensors}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _parts(name: str, weight: PackedTensor | torch.Tensor) -> tuple[dict[str, torch.Tensor], dict]:
    if isinstance(weight, torch.Tensor):
        dtypes = {dtype: label for label, dtype in DTYPES.items()}
        return {name: weight.contiguous()}, {"shape": list(weight.shape), "dtype": dtypes[weight.dtype]}
    parts = {part: getattr(weight, part) for part in _PARTS if getattr(weight, part) is not None}
    entry = {"shape": list(weight.shape), "dtype": weight.dtype, "coding": weight.coding, "parts": list(parts)}
    return {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}, entry


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_packed(folder: Path) -> bool:
    """Whether a folder holds a packed checkpoint."""
    return (folder / INDEX_NAME).is_file()


def read_packed(folder: Path) -> PackedFiles:
    """Check a packed checkpoint and open it.

    Raises:
        ValueError: there is none, it is of another format or version, or a shard is missing, cut short or changed.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {INDEX_NAME}: it is not a packed checkpoint")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is not the index of a packed checkpoint (no format {FORMAT!r})")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{folder} is of version {index.get('version')!r} of the packed format and this is {VERSION}: "
            "install a version of hf-mamba-prune that reads it"
        )
    try:
        files, tensors, tied = dict(index["files"]), dict(index["tensors"]), dict(index["tied"])
        wanted = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
        unknown = {entry["file"] for entry in tensors.values()} - wanted.keys()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if unknown:
        raise ValueError(f"{path} is damaged: it names {sorted(unknown)[0]!r}, of which it gives no checksum")
    for name, (size, digest) in wanted.items():
        _check_shard(folder, name, size, digest)
    return PackedFiles(folder=folder, tensors=tensors, tied=tied)


def _check_shard(folder: Path, name: str, size: int, digest: str) -> None:
    if not _SHARD.fullmatch(name):
        raise ValueError(f"the index in {folder} names a file {name!r}; a shard is called packed-*.safetensors")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{name} is missing in {folder}: get the checkpoint again")
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{name} has {found:,} bytes, expected {size:,}: it was cut short, get it again")
    if _sha256(path) != digest:
        raise ValueError(f"{name} does not have its checksum: it was changed or damaged, get it again")
