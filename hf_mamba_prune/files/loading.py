"""A Hub id or a folder -> model and tokenizer, or an error that says why not; nothing is ever left at random."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2
import torch
import yaml
from huggingface_hub import metadata_load, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from hf_mamba_prune.files.placing import find_device, find_dtype
from hf_mamba_prune.files.state_spaces import TOKENIZER, WEIGHTS, convert_config, is_original_layout, load_original
from hf_mamba_prune.models.architectures import ARCHITECTURES
from hf_mamba_prune.packed import is_packed
from hf_mamba_prune.packed.config import PACKED_CONFIGS, to_dense

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "README.md"]
Weights = Literal["own", "packed"]
_PACKED = tuple(config.model_type for config in PACKED_CONFIGS.values())


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
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    id: str
    revision: str | None
    folder: Path
    saved_dtype: torch.dtype
    license: str | None = None
    language: tuple[str, ...] = ()


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
    folder, commit = fetch(source, revision, "own")
    values = read_config(folder, source)
    wanted = find_dtype(dtype)
    if is_original_layout(values):
        model = load_original(folder, values, wanted)
        saved = model.dtype
    else:
        model = _unpacked(folder, wanted) if is_packed(folder) else _load_transformers(folder, wanted or "auto")
        saved = wanted or model.dtype
    if wanted is None and place.type == "cpu":
        model = model.float()
    _refuse_not_finite(model, source)
    model = model.to(place).eval()
    name = source if commit else folder.resolve().name
    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(_tokenizer_source(folder, values, tokenizer))
    license, language = _card_facts(folder)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=name,
        revision=commit,
        folder=folder,
        saved_dtype=saved,
        license=license,
        language=language,
    )


def load_tokenizer_of(
    source: str, revision: str | None = None, tokenizer: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_model` takes, without the model.

    Args:
        source, revision, tokenizer: see `load_model`.

    Raises:
        ValueError: no such model, or no usable tokenizer.
        RuntimeError: the Hub cannot be reached or refuses.
    """
    folder, _ = fetch(source, revision)
    return load_tokenizer(_tokenizer_source(folder, read_config(folder, source), tokenizer))


def _tokenizer_source(folder: Path, values: dict, tokenizer: str | None) -> str:
    """What was asked for, or the model's own, or that of all models in the original layout."""
    own = not is_original_layout(values) or (folder / "tokenizer.json").is_file()
    return tokenizer or (str(folder) if own else TOKENIZER)


def _card_facts(folder: Path) -> tuple[str | None, tuple[str, ...]]:
    """License and languages of the card's front matter."""
    path = folder / "README.md"
    try:
        found = (metadata_load(path) if path.is_file() else None) or {}
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):  # a card that cannot be read says nothing
        found = {}
    license, language = found.get("license"), found.get("language")
    language = [language] if isinstance(language, str) else language
    known = tuple(word for word in language if isinstance(word, str)) if isinstance(language, list) else ()
    return license if isinstance(license, str) else None, known


def load_skeleton(source: str, revision: str | None = None) -> PreTrainedModel:
    """The model without its weights, on the meta device: enough to count and to plan."""
    folder, _ = fetch(source, revision)
    values = read_config(folder, source)
    config = (
        convert_config(values)
        if is_original_layout(values)
        else AutoConfig.from_pretrained(folder, trust_remote_code=False)
    )
    config = to_dense(config) if type(config) in PACKED_CONFIGS.values() else config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def fetch(source: str, revision: str | None, *weights: Weights) -> tuple[Path, str | None]:
    """The folder that holds a model's files, downloaded when `source` is a Hub id; and the commit.

    Args:
        source: Hub id or folder.
        revision: branch, tag or commit of a Hub id.
        *weights: which weights too: those of the model itself, those of the packed checkpoint in `packed/`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path, None
    if path.exists() or source.startswith((".", "/", "~")):
        raise ValueError(f"{source} is not a folder; expected a folder with config.json, or a Hub id like user/name.")
    with _hub_errors(source, revision):
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=_SMALL_FILES))
        commit = folder.name  # from here on the same commit, whatever is pushed meanwhile
        if "packed" in weights:
            snapshot_download(source, revision=commit, allow_patterns=["packed/*.safetensors"])
        if "own" in weights:
            names = {"allow_patterns": ["*.safetensors"], "ignore_patterns": ["packed/*"]}
            snapshot_download(source, revision=commit, **names)
            if not list(folder.glob("*.safetensors")):
                snapshot_download(source, revision=commit, allow_patterns=[WEIGHTS, "pytorch_model-*.bin"])
    return folder, commit


@contextmanager
def _hub_errors(source: str, revision: str | None) -> Iterator[None]:
    """The Hub's answers as one sentence each."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{source!r} is neither a folder nor a valid Hub id.") from error
    except GatedRepoError as error:
        raise RuntimeError(
            f"{source} is gated: accept its terms on the Hub, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"there is no folder and no Hub model {source!r} (or it is private: log in with `hf auth login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{source} has no revision {revision!r}.") from error
    except LocalEntryNotFoundError as error:
        raise RuntimeError(
            f"{source} is not in the local cache and the Hub cannot be reached: check the network, or give a folder."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise RuntimeError(
            f"the Hub refused {source} (HTTP {status}): try again, or check `hf auth whoami`."
        ) from error
    except httpx2.TransportError as error:
        raise RuntimeError(
            f"the connection to the Hub broke while fetching {source} ({type(error).__name__}): try again, what has "
            "come is kept."
        ) from error


def read_config(folder: Path, source: str) -> dict:
    """config.json of a supported model.

    Raises:
        ValueError: missing, not JSON, or of a model that is not a supported state-space model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{source} holds no config.json: it is not a model.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config.json of {source} is not JSON: {error}.") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not (isinstance(values, dict) and (is_original_layout(values) or kind in (*ARCHITECTURES, *_PACKED))):
        raise ValueError(
            f"{source} is a model of type {kind!r}, which is not a supported state-space model. "
            f"Supported: {', '.join(ARCHITECTURES)}."
        )
    return values


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the Hub.

    Raises:
        ValueError: there is none, or it cannot be read.
        RuntimeError: the Hub cannot be reached.
    """
    folder = Path(source)
    if not folder.is_dir():
        with _hub_errors(source, None):
            folder = Path(snapshot_download(source, allow_patterns=_SMALL_FILES))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source} has no usable tokenizer ({reason}): name one with --tokenizer.") from error
    # Where there are no files at all, transformers makes one without a vocabulary, for which every text is empty.
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise ValueError(f"{source} has no usable tokenizer (its vocabulary is empty): name one with --tokenizer.")
    return tokenizer


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
    _check_shards(folder)
    try:
        with _without_remarks():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
            )
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} are damaged or cut short: {error}.") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} are damaged or cut short, or hold more than tensors.") from error
    except (OSError, EOFError) as error:
        raise ValueError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            keys = (key if isinstance(key, str) else key[0] for key in found[kind])
            names = ", ".join(sorted(keys)[:3])
            raise ValueError(
                f"the weights in {folder} do not fit its config.json: {len(found[kind])} {kind.replace('_', ' ')}, "
                f"such as {names}."
            )
    return model


def _check_shards(folder: Path) -> None:
    """Refuse an index of shards that names files outside the folder."""
    for path in folder.glob("*.index.json"):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            names = set(values["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: it is not an index of shards.") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{path} names a file {name!r}; a shard lies beside its index.")


def _unpacked(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    with _without_remarks():
        return AutoModelForCausalLM.from_pretrained(
            folder, unpack=True, dtype=dtype or "auto", trust_remote_code=False
        )


def _refuse_not_finite(model: PreTrainedModel, source: str) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{source}: the weight {name} holds NaN or infinite values.")


def weights_sha256(model: torch.nn.Module) -> str:
    """Hash over the names and bytes of all parameters, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
