"""Rows of a local file: text, jsonl, json, csv, tsv, parquet, arrow, also compressed; or of a folder of `datasets`."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import datasets
import pyarrow

from hf_mamba_prune.reading import MOST_BYTES, parse_json, read_json
from hf_mamba_prune.texts.columns import Record, choose, kinds_of, text_of, texts_of


def _open_zstandard(path: Path) -> IO[bytes]:
    """pyarrow's reader, because zstandard's own takes a file that was cut short for a whole one."""
    return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))


def _open_gzip(path: Path) -> IO[bytes]:
    return gzip.open(path)  # type: ignore[return-value]  # a file in all but name


def _open_lzma(path: Path) -> IO[bytes]:
    return lzma.open(path)


_OPENERS = {".gz": _open_gzip, ".xz": _open_lzma, ".zst": _open_zstandard}
_LINES = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = {".txt", ".raw", ".tokens", ".json", *_LINES, *_DELIMITERS, ".parquet", ".arrow", *_OPENERS}
"""Endings of names, in lower case, that say that a local file is meant."""

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_BOM = b"\xef\xbb\xbf"


def file_rows(path: Path, column: str | None) -> Iterator[str]:
    """The rows of a file, read by the ending of its name.

    Raises:
        ValueError: it cannot be read, or has no column that could be the text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1] if suffixes and suffixes[-1] in _OPENERS else ""
    kind = (suffixes[:-1] if packed else suffixes)[-1:] or [""]
    try:
        with _OPENERS[packed](path) if packed else path.open("rb") as stream:
            yield from _rows(stream, kind[0], path, column)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole {packed or kind[0]} file: {error}.") from error


def _rows(stream: IO[bytes], kind: str, path: Path, column: str | None) -> Iterator[str]:
    if kind == ".parquet":
        return _parquet_rows(stream, path, column)
    if kind == ".arrow":
        return _dataset_rows(_opened(lambda: datasets.Dataset.from_file(str(path)), path), str(path), column)
    if kind in _LINES:
        return texts_of(_json_lines(stream, str(path)), column, str(path))
    if kind == ".json":
        return texts_of(json_records(stream, str(path)), column, str(path))
    if kind in _DELIMITERS:
        return texts_of(_table_records(stream, path, _DELIMITERS[kind]), column, str(path), numbers=False)
    return _text_rows(stream)


def _text_rows(stream: IO[bytes]) -> Iterator[str]:
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n") as lines:
        yield from split_lines(lines)


def split_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a file -> the rows that the Hub's WikiText holds: a blank line is '', others keep space and newline."""
    for line in lines:
        yield line if line.strip() else ""


def _json_lines(lines: Iterable[bytes], where: str) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        line = line.removeprefix(_BOM) if number == 1 else line
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            record = parse_json(line, "it")
        except ValueError as error:
            raise ValueError(
                f"{place}: expected one JSON object a line, or in a file called .json one array of them ({error})"
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"{place}: expected a JSON object, found {type(record).__name__}.")
        yield place, record


def json_records(stream: IO[bytes], where: str, field: str | None = None) -> Iterator[Record]:
    """Of one array of objects or texts, or of one object a line.

    Args:
        stream: of UTF-8.
        where: the file, for errors.
        field: of the one object that the file is, which holds the array; None: the file is the array, or lines.

    Raises:
        ValueError: it is neither, or nested deeper than `reading.MOST_DEPTH`.
    """
    head = b""
    while not head.strip() and (line := stream.readline()):
        head += line.removeprefix(_BOM)
    if field is None and not head.lstrip().startswith(b"["):
        blank = head.count(b"\n") - 1 if head.strip() else 0
        yield from _json_lines((line for part in ([b"\n"] * blank, [head.lstrip()], stream) for line in part), where)
        return
    text = head + stream.read(MOST_BYTES)
    if len(text) >= MOST_BYTES:
        raise ValueError(
            f"{where} is one JSON array of more than {MOST_BYTES:,} bytes: write one object a line (.jsonl)."
        )
    values = parse_json(text, where)
    if field is not None:
        if not isinstance(values, dict) or field not in values:
            raise ValueError(f"{where} is no JSON object with a field {field!r}.")
        values = values[field]
    for number, value in enumerate(values if isinstance(values, list) else [values], 1):
        record = {"text": value} if isinstance(value, str) else value
        if not isinstance(record, dict):
            raise ValueError(f"{where}, item {number}: expected a JSON object, found {type(record).__name__}.")
        yield f"{where}, item {number}", record


def _table_records(stream: IO[bytes], path: Path, delimiter: str) -> Iterator[Record]:
    """Of a table with a head. By Python: pandas, with which `datasets` reads it, takes the text NA for a missing one
    and 007 for the number 7."""
    csv.field_size_limit(MOST_BYTES)
    with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        try:
            for record in reader:
                yield f"{path}, line {reader.line_num}", {name: value for name, value in record.items() if name}
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not a row of a table ({error}).") from error


def _parquet_rows(stream: IO[bytes], path: Path, column: str | None) -> Iterator[str]:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(stream.read()))
        name = choose(kinds_of(file.schema_arrow), column, str(path))
        for batch in file.iter_batches(columns=[name]):
            yield from (text_of(value, str(path), name) for value in batch.column(0).to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a whole parquet file: {error}.") from error


def folder_rows(path: Path, split: str, column: str | None) -> Iterator[str]:
    """The rows of a folder that `datasets` wrote with `save_to_disk`.

    Raises:
        ValueError: it is no such folder, has no such split, or no column that could be the text.
    """
    held = [name for name in _SAVED if (path / name).is_file()]
    if not held:
        raise ValueError(
            f"{path} is a folder; expected a file (text, jsonl, json, csv, tsv, parquet), a folder that `datasets` "
            "wrote with save_to_disk, or a data set of the Hub."
        )
    for name in held:
        read_json(path / name)
    found = _opened(lambda: datasets.load_from_disk(str(path)), path)
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            there = ", ".join(map(str, found))
            raise ValueError(f"{path} has no split {split!r}; it has: {there}. Give the folder of one of them.")
        found = found[split]
    return _dataset_rows(found, str(path), column)


def _opened(
    open_it: Callable[[], datasets.Dataset | datasets.DatasetDict], path: Path
) -> datasets.Dataset | datasets.DatasetDict:
    try:
        return open_it()
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, pyarrow.ArrowException,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as `datasets` saves it: {reason[:200]}.") from error


def _dataset_rows(found: datasets.Dataset, where: str, column: str | None) -> Iterator[str]:
    name = choose(kinds_of(found.features.arrow_schema), column, where)
    for record in found.select_columns([name]):
        yield text_of(record[name], where, name)
