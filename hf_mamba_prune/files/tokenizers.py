"""The tokenizer of a model, or one sentence that says why there is none and how to name another."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_mamba_prune.files.configs import read_config
from hf_mamba_prune.files.fetching import fetch, fetch_tokenizer
from hf_mamba_prune.files.state_spaces import TOKENIZER, is_original_layout
from hf_mamba_prune.reading import read_json

_MODELS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HINT = "name one with --tokenizer"
_WRONG_FILES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError, StrictDataclassError
)  # fmt: skip
"""What reading files of a wrong shape ends in, those of the config beside a tokenizer too."""
_READ = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "chat_template.json",
)  # fmt: skip
"""What transformers reads of a tokenizer."""


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the Hub.

    Raises:
        ValueError: there is none, or it cannot be read.
        RuntimeError: the Hub cannot be reached.
    """
    try:
        folder = fetch_tokenizer(source)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"no tokenizer: {str(error).rstrip('.')}; {_HINT}.") from error
    _check_files(folder, source)
    needs = _needs_sentencepiece(folder)
    with _ReadTokenizer(source, needs):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # Where there are no files at all, transformers makes one without a vocabulary, for which every text is empty.
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise ValueError(f"{source} has no usable tokenizer ({needs or 'its vocabulary is empty'}): {_HINT}.")
    return tokenizer


class _ReadTokenizer(AbstractContextManager):
    """What is wrong with a tokenizer's files as one sentence.

    The tokenizers library raises the class `Exception` itself, which an `except` cannot name without all others.
    """

    def __init__(self, source: str, needs: str | None) -> None:
        self._source, self._needs = source, needs

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and (kind is Exception or issubclass(kind, _WRONG_FILES)):
            reason = self._needs or next(iter(str(error).splitlines()), "") or kind.__name__
            raise ValueError(f"{self._source} has no usable tokenizer ({reason[:200]}): {_HINT}.") from error


def load_tokenizer_of(
    source: str, revision: str | None = None, tokenizer: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that `loading.load_model` takes, without the model.

    Args:
        source, revision, tokenizer: see `loading.load_model`.

    Raises:
        ValueError: no such model, or no usable tokenizer.
        RuntimeError: the Hub cannot be reached or refuses.
    """
    folder, _ = fetch(source, revision)
    return load_tokenizer(tokenizer_source(folder, read_config(folder, source), tokenizer))


def tokenizer_source(folder: Path, values: dict[str, Any], tokenizer: str | None) -> str:
    """What was asked for, or the model's own, or that of all models in the original layout."""
    own = not is_original_layout(values) or any((folder / name).is_file() for name in _MODELS)
    return tokenizer or (str(folder) if own else TOKENIZER)


def _check_files(folder: Path, source: str) -> None:
    for name in _READ:
        if (folder / name).is_file():
            try:
                read_json(folder / name, name)
            except ValueError as error:
                raise ValueError(f"{source} has no usable tokenizer ({str(error).rstrip('.')}): {_HINT}.") from error


def _needs_sentencepiece(folder: Path) -> str:
    """What transformers words wrongly: a sentencepiece model alone, which it then takes for tiktoken's."""
    if (folder / "tokenizer.json").is_file():
        return ""
    found = next((name for name in ("tokenizer.model", "spiece.model") if (folder / name).is_file()), None)
    return f"it has only {found}, a sentencepiece model, and no tokenizer.json" if found else ""
