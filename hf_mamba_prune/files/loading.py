"""A Hub id or a folder -> model and tokenizer, or an error that says why not; nothing is ever left at random."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hf_mamba_prune.files.cards import read_card
from hf_mamba_prune.files.configs import read_config
from hf_mamba_prune.files.fetching import fetch
from hf_mamba_prune.files.placing import find_device, find_dtype
from hf_mamba_prune.files.skeleton import build_skeleton, load_skeleton
from hf_mamba_prune.files.state_spaces import OLD_NAME, is_original_layout, load_original
from hf_mamba_prune.files.tokenizers import load_tokenizer, load_tokenizer_of, tokenizer_source
from hf_mamba_prune.files.weights import weight_files
from hf_mamba_prune.packed.checkpoint import is_packed, load_packed

__all__ = [
    "LoadedModel",
    "fetch",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "load_tokenizer_of",
    "read_config",
    "weights_sha256",
]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be pruned.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: of the same model.
        id: the Hub id, or the folder's name.
        revision: commit of the Hub repository, None for a folder.
        folder: where its files are.
        saved_dtype: in which it should be saved: that of its checkpoint unless the user asked for one.
        license: that its card names, None without one.
        language: those that its card names.
        left_out: what of its card could not be used, one sentence each.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    id: str
    revision: str | None
    folder: Path
    saved_dtype: torch.dtype
    license: str | None = None
    language: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def load_model(
    source: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: str | PreTrainedTokenizerBase | None = None,
) -> LoadedModel:
    """Load a Mamba language model.

    Args:
        source: Hub id or folder; transformers layout, the original state-spaces layout, or a packed checkpoint, which
            becomes an ordinary model.
        revision: branch, tag or commit of a Hub id.
        dtype: `auto` (float32 on a CPU, the checkpoint's elsewhere), `float32`, `bfloat16` or `float16`.
        device: `auto` (CUDA when there is one), or any torch device.
        tokenizer: Hub id or folder, or one that is loaded; default: the model's own, or GPT-NeoX-20B's for the
            original layout.

    Raises:
        ValueError: no such model, not a supported state-space model, or files that do not fit together.
        RuntimeError: the Hub cannot be reached or refuses.
    """
    place = find_device(device)
    wanted = find_dtype(dtype)
    folder, commit = fetch(source, revision, "own")
    skeleton, held = build_skeleton(folder, source)
    values = read_config(folder, source)
    if is_original_layout(values) or (held is not None and f"{OLD_NAME}weight" in held.names):
        model = load_original(folder, skeleton.config, wanted)
        saved = model.dtype
    else:
        model = _unpacked(folder, wanted) if is_packed(folder) else _load_transformers(folder, wanted or "auto")
        saved = wanted or model.dtype
    if wanted is None and place.type == "cpu":
        model = model.float()
    _refuse_not_finite(model, source)
    model = model.to(place).eval()  # type: ignore[arg-type]  # what transformers wraps it in loses its signature
    name = source if commit else folder.resolve().name
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer_source(folder, values, tokenizer))
    card = read_card(folder)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=name,
        revision=commit,
        folder=folder,
        saved_dtype=saved,
        license=card.license,
        language=card.language,
        left_out=card.left_out,
    )


@contextmanager
def _without_remarks() -> Iterator[None]:
    """transformers prints its own table of missing keys; ours is an error."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _load_transformers(folder: Path, dtype: torch.dtype | str) -> PreTrainedModel:
    missing = [path.name for path in weight_files(folder) if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} cannot be loaded: its index names {missing[0]}, which is not there.")
    try:
        with _without_remarks():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} are damaged or cut short: {error}.") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} are damaged or cut short, or hold more than tensors.") from error
    except (OSError, EOFError, KeyError) as error:
        raise ValueError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    model, found = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            keys = (key if isinstance(key, str) else key[0] for key in found[kind])
            names = ", ".join(sorted(keys)[:3])
            raise ValueError(
                f"the weights in {folder} do not fit its config.json: {len(found[kind])} {kind.replace('_', ' ')}, "
                f"such as {names}."
            )
    return model


def _unpacked(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    weight_files(folder)  # refuses an index that names files elsewhere
    with _without_remarks():
        return load_packed(folder, unpack=True, dtype=dtype or "auto")


def _refuse_not_finite(model: PreTrainedModel, source: str) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{source}: the weight {name} holds NaN or infinite values.")


def weights_sha256(model: torch.nn.Module) -> str:
    """Hash over the names and bytes of all parameters, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
