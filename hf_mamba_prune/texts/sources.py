"""Where text comes from: a data set of the Hub, or a local file or folder.

A `TextSource` is a list of documents. How they become one text again is part of it: WikiText holds the lines of the
original file and are joined by a blank line, as everyone who reports its perplexity does.
"""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import yaml
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hf_mamba_prune.hub_answers import ODD_ANSWER
from hf_mamba_prune.texts.columns import Record, choose, kinds_of, text_of, texts_of
from hf_mamba_prune.texts.files import SUFFIXES, file_rows, folder_rows
from hf_mamba_prune.texts.remote import remote_records

ALIASES = {
    "wikitext": "Salesforce/wikitext:wikitext-103-raw-v1",
    "wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1",
    "wikitext103": "Salesforce/wikitext:wikitext-103-raw-v1",
    "c4": "allenai/c4:en",
}
MOST_CHARACTERS = 256_000_000
"""What is read of one source at most: enough for any calibration, and small enough for 16 GB."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TextSource:
    """A text and where it is from.

    Args:
        name: Hub data set as given, or the file's name without its folder, for reports.
        documents: its pieces as the data set holds them, one string a row: whole documents, or the lines of one.
    """

    name: str
    documents: tuple[str, ...]

    @property
    def characters(self) -> int:
        """Length of all documents together."""
        return sum(map(len, self.documents))

    def joined(self) -> str:
        """The documents as one text, joined by a blank line: the field's way to evaluate WikiText."""
        return "\n\n".join(self.documents)


def read_text(
    source: str, split: str, column: str | None = None, most_characters: int = MOST_CHARACTERS
) -> TextSource:
    """Read a text.

    Args:
        source: path of a local file (`.txt`, `.raw`, `.tokens` or any other text; `.jsonl`, `.json`, `.csv`, `.tsv`,
            `.parquet`, `.arrow`; all but the last also as `.gz`, `.xz`, `.zst`), a folder that `datasets` wrote with
            `save_to_disk`, an alias (`wikitext`, `wikitext2`, `c4`), or a Hub data set as `name`, `name:config` or
            `name:config:split`.
        split: the split of a data set whose name has none.
        column: the text's column; found by itself when it is `text`, or the only one of messages, texts or lists.
        most_characters: reading stops there.

    Raises:
        ValueError: no such file or data set, a wrong column, or nothing in it.
    """
    path = Path(source).expanduser()
    looks_local = path.suffix.lower() in SUFFIXES or source.startswith((".", "/", "~"))
    if path.is_dir():
        rows = _capped(folder_rows(path, split, column), most_characters)
    elif path.is_file():
        rows = _capped(file_rows(path, column), most_characters)
    elif looks_local:
        raise ValueError(f"there is no file {source}.")
    else:
        rows = _capped(_hub_rows(source, split, column), most_characters)
    if not any(row.strip() for row in rows):
        raise ValueError(f"{source} holds no text.")
    return TextSource(path.resolve().name if path.exists() else source, tuple(rows))


def hub_dataset(name: str) -> tuple[str, str | None, str | None] | None:
    """Name of a text -> (Hub id, config, split) of its data set, None where it was a local file."""
    parts = ALIASES.get(name, name).split(":")
    if len(parts) > 3 or parts[0].count("/") != 1:
        return None
    config, split = ([part or None for part in parts[1:]] + [None, None])[:2]
    return parts[0], config, split


def _capped(rows: Iterator[str], most_characters: int) -> list[str]:
    """Rows up to a length, without lone surrogates: JSON can spell them, and no tokenizer takes them."""
    kept, length = [], 0
    for row in rows:
        kept.append(_SURROGATE.sub("\ufffd", row))
        length += len(row)
        if length >= most_characters:
            break
    return kept


def _hub_rows(source: str, split: str, column: str | None) -> Iterator[str]:
    name, config, own_split = (ALIASES.get(source, source).split(":") + ["", ""])[:3]
    with _hub_errors(source):
        schema, records = remote_records(name, config or None, own_split or split)
        first = next(records, None)
    rest = itertools.chain([] if first is None else [first], _guarded(records, source))
    if schema is None:
        yield from texts_of(rest, column, source)
        return
    key = choose(kinds_of(schema), column, source)
    yield from (text_of(record.get(key), place, key) for place, record in rest)


def _guarded(records: Iterator[Record], source: str) -> Iterator[Record]:
    with _hub_errors(source):
        yield from records


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """What goes wrong with a data set of the Hub, with it or with its files, as one sentence each."""
    try:
        yield
    except (DatasetNotFoundError, HFValidationError) as error:
        raise ValueError(f"{source!r} is neither a local file nor a data set of the Hub ({_short(error)}).") from error
    except (OSError, HfHubHTTPError) as error:
        if isinstance(error, EmptyDatasetError):
            raise ValueError(f"the data set {source!r} cannot be used: {_short(error)}.") from error
        raise RuntimeError(f"the data set {source!r} could not be read: {_short(error)}.") from error
    except (
        DatasetsError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError,
        pyarrow.ArrowException,
    ) as error:  # fmt: skip
        if _is_an_answer(error):
            raise RuntimeError(f"the Hub's answer about the data set {source!r} {ODD_ANSWER}.") from error
        raise ValueError(f"the data set {source!r} cannot be used: {_short(error)}.") from error


def _is_an_answer(error: Exception) -> bool:
    """Whether the Hub's client could not read what came, rather than `datasets` the data."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "huggingface_hub.hf_api" for frame in frames)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
