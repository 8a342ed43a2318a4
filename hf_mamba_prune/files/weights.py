"""The weights in a folder: which files they are, what shapes those hold, and a state dict in transformers' names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hf_mamba_prune.reading import read_json

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a folder's weights, in the order of transformers' choice; none where there are none.

    Raises:
        ValueError: an index of shards is damaged, or names files outside the folder.
    """
    for whole, index in zip(WHOLE, INDICES, strict=True):
        if (folder / whole).is_file():
            return (folder / whole,)
        if (folder / index).is_file():
            return tuple(folder / name for name in shard_names(folder / index))
    return ()


def shard_names(index: Path) -> tuple[str, ...]:
    """Names of the shards in an index, sorted.

    Raises:
        ValueError: it is damaged, or names files outside its folder.
    """
    values = read_json(index)
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index} is damaged: it is not an index of shards.")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{index} names a file {name!r}; a shard lies beside its index.")
    return tuple(sorted(set(names.values())))


def read_state(path: Path, meta: bool = False) -> Mapping[str, torch.Tensor]:
    """The tensors of one file, which may be wrapped as training code does it.

    A pickle is read with `weights_only`, which executes nothing.

    Args:
        path: safetensors, or a pickle.
        meta: the shapes alone.

    Raises:
        ValueError: it is damaged, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as found:
                if meta:
                    return {
                        name: torch.empty(found.get_slice(name).get_shape(), device="meta") for name in found.keys()
                    }
                return {name: found.get_tensor(name) for name in found.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the weights in {path} are damaged or cut short: {error}.") from error
    try:
        state = _load_pickle(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole checkpoint of plain tensors: damaged, or more than that.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not a whole checkpoint of plain tensors: it is nested too deep.") from error
    return _plain(state, path)


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the older format knows no mmap
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """A state dict out of what holds it, without the prefixes of wrappers.

    Raises:
        ValueError: there is none.
    """
    for _ in _WRAPPERS:
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), None) if (
            isinstance(state, dict)
        ) else None  # fmt: skip
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not state or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):  # fmt: skip
        raise ValueError(f"{path} is not a whole checkpoint of plain tensors: it holds something else.")
    while prefix := next((own for own in _PREFIXES if all(key.startswith(own) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _held(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, elements) of every tensor in the weights' files, at most as many as their bytes can hold."""
    for path in weight_files(folder):
        for name, tensor in read_state(path, meta=True).items():
            # A pickle may show a few bytes as a tensor of any shape.
            held = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
            yield name, tensor.numel() if tensor.is_meta else min(tensor.numel(), held)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the files of weights hold, by their headers.

    Args:
        weights: elements of all tensors.
        blocks: the highest index of one, plus 1.
        names: of the tensors.
    """

    weights: int
    blocks: int
    names: frozenset[str]


def held_in(folder: Path) -> Held | None:
    """What the files of weights in a folder hold; None where there are none, or not all are there.

    Raises:
        ValueError: they are damaged.
    """
    paths = weight_files(folder)
    if not paths or not all(path.is_file() for path in paths):
        return None
    sizes = dict(_held(folder))
    layers = [int(found[1]) + 1 for name in sizes if (found := _LAYER.search(name))]
    return Held(weights=sum(sizes.values()), blocks=max(layers, default=0), names=frozenset(sizes))
