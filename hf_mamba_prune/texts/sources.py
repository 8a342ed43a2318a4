"""Where text comes from: a data set of the Hub, or a local text, jsonl or parquet file, also compressed.

A `TextSource` is a list of documents. How they become one text again is part of it: WikiText holds the lines of the
original file and are joined by a blank line, as everyone who reports its perplexity does.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

ALIASES = {
    "wikitext": "Salesforce/wikitext:wikitext-103-raw-v1",
    "wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1",
    "wikitext103": "Salesforce/wikitext:wikitext-103-raw-v1",
    "c4": "allenai/c4:en",
}
MOST_CHARACTERS = 256_000_000
"""What is read of one source at most: enough for any calibration, and small enough for 16 GB."""


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
        source: path of a local file (`.txt`, `.raw`, `.tokens` or any other text; `.jsonl`, `.json`, `.parquet`; each
            also as `.gz`, `.xz`, `.zst`), an alias (`wikitext`, `wikitext2`, `c4`), or a Hub data set as
            `name`, `name:config` or `name:config:split`.
        split: the split of a Hub data set whose name has none.
        column: the text's column; found by itself when it is `text` or the only column of strings.
        most_characters: reading stops there.

    Raises:
        ValueError: no such file or data set, a wrong column, or nothing in it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"{source} is a folder; expected a text, jsonl or parquet file, or a data set of the Hub.")
    looks_local = path.suffix in _SUFFIXES or source.startswith((".", "/", "~"))
    if path.is_file():
        rows = _capped(_local_rows(path, column), most_characters)
    elif looks_local:
        raise ValueError(f"there is no file {source}.")
    else:
        rows = _capped(_hub_rows(source, split, column), most_characters)
    if not any(row.strip() for row in rows):
        raise ValueError(f"{source} holds no text.")
    return TextSource(path.name if path.is_file() else source, tuple(rows))


def hub_dataset(name: str) -> tuple[str, str | None, str | None] | None:
    """Name of a text -> (Hub id, config, split) of its data set, None where it was a local file."""
    parts = ALIASES.get(name, name).split(":")
    if len(parts) > 3 or parts[0].count("/") != 1:
        return None
    return parts[0], *(parts[1:] + [None, None])[:2]


def _open_zstandard(path: Path) -> io.BufferedReader:
    """pyarrow's reader, because zstandard's own takes a file that was cut short for a whole one."""
    return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))


_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".zst": _open_zstandard}
_SUFFIXES = {".txt", ".raw", ".tokens", ".json", ".jsonl", ".parquet", *_OPENERS}


def _capped(rows: Iterator[str], most_characters: int) -> list[str]:
    kept, length = [], 0
    for row in rows:
        kept.append(row)
        length += len(row)
        if length >= most_characters:
            break
    return kept


def _local_rows(path: Path, column: str | None) -> Iterator[str]:
    packed = path.suffix in _OPENERS
    kind = path.with_suffix("").suffix if packed else path.suffix
    try:
        with (_OPENERS[path.suffix] if packed else lambda p: open(p, "rb"))(path) as stream:
            if kind == ".parquet":
                yield from _parquet_rows(stream, path, column)
            elif kind in (".jsonl", ".json"):
                yield from _json_rows(stream, path, column)
            else:
                with io.TextIOWrapper(stream, encoding="utf-8", newline="\n") as lines:
                    yield from split_lines(lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} file: {error}.") from error


def split_lines(lines: Iterator[str]) -> Iterator[str]:
    """Lines of a file -> the rows that the Hub's WikiText holds: a blank line is '', others keep space and newline."""
    for line in lines:
        yield line if line.strip() else ""


def _json_rows(stream: io.IOBase, path: Path, column: str | None) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected one JSON object a line ({error}).") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(record).__name__}.")
        strings = [key for key, value in record.items() if isinstance(value, str)]
        yield record[_text_column(strings, column, str(path))]


def _parquet_rows(stream: io.IOBase, path: Path, column: str | None) -> Iterator[str]:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(stream.read()))
        strings = [f.name for f in file.schema_arrow if str(f.type) in ("string", "large_string", "string_view")]
        name = _text_column(strings, column, str(path))
        for batch in file.iter_batches(columns=[name]):
            yield from (value or "" for value in batch.column(0).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet file: {error}.") from error


def _hub_rows(source: str, split: str, column: str | None) -> Iterator[str]:
    name, config, own_split = (ALIASES.get(source, source).split(":") + ["", ""])[:3]
    streaming = not datasets.config.HF_HUB_OFFLINE
    try:
        data = datasets.load_dataset(name, config or None, split=own_split or split, streaming=streaming)
        records = iter(data)
        first = next(records, {})
    except (DatasetNotFoundError, HFValidationError) as error:
        raise ValueError(f"{source!r} is neither a local file nor a data set of the Hub ({error}).") from error
    except (EmptyDatasetError, ValueError) as error:
        raise ValueError(f"the data set {source!r} cannot be used: {error}.") from error
    except (OSError, HfHubHTTPError) as error:
        raise RuntimeError(f"the data set {source!r} could not be read: {error}.") from error
    key = _text_column(_string_columns(data.features, first), column, source)
    try:
        yield from (record[key] or "" for record in itertools.chain([first] if first else [], records))
    except (OSError, HfHubHTTPError) as error:
        raise RuntimeError(f"the data set {source!r} could not be read to its end: {error}.") from error


def _string_columns(features: datasets.Features | None, first: dict) -> list[str]:
    """Columns of strings: as the data set declares them, or of the first record where a plain file declares none."""
    if features is None:
        return [key for key, value in first.items() if isinstance(value, str)]
    return [key for key, kind in features.items() if getattr(kind, "dtype", "") == "string"]


def _text_column(strings: list[str], wanted: str | None, where: str) -> str:
    if wanted is not None:
        if wanted not in strings:
            raise ValueError(f"{where} has no text column {wanted!r}; it has: {', '.join(strings) or 'none'}.")
        return wanted
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        raise ValueError(f"{where} has {len(strings)} text columns ({', '.join(strings)}): name one with --column.")
    return strings[0]
