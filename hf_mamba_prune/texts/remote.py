"""Records of a data set of the Hub, read where they lie.

JSON by this package's parser: for pyarrow's a row that is nested deep enough is the end of the process.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import IO, Any

import datasets
import pyarrow
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.json.json import Json
from datasets.utils.file_utils import xopen

from hf_mamba_prune.texts.columns import Record
from hf_mamba_prune.texts.files import json_records

_PIECE = 1 << 20


class _Raw(io.RawIOBase):
    """A remote file by its `read`, which `datasets` repeats where the connection breaks."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def remote_records(name: str, config: str | None, split: str) -> tuple[pyarrow.Schema | None, Iterator[Record]]:
    """Schema, where one is known, and records of a data set.

    Args:
        name: Hub id.
        config: None: its only or default one.
        split: such as "train", or several as "train+test".

    Raises:
        ValueError: it has no such split, or holds no texts; and what `datasets` raises, also while it is read.
    """
    if datasets.config.HF_HUB_OFFLINE:  # what was read and converted before is all that is to be had
        return _table(datasets.load_dataset(name, config, split=split), name)
    builder = datasets.load_dataset_builder(name, config)
    if isinstance(builder, FolderBasedBuilder):
        raise ValueError(f"it holds files of another kind ({type(builder).__name__}); expected texts")
    if not isinstance(builder, Json):
        return _table(builder.as_streaming_dataset(split=split), name)
    files = builder.config.data_files or {}
    for part in split.split("+"):
        if part not in files:
            raise ValueError(f"it has no split {part!r}, but {', '.join(map(str, files)) or 'none'}")
    features = builder.info.features
    wanted = [path for part in split.split("+") for path in files[part]]
    return features and features.arrow_schema, _json_files(builder, name, wanted)


def _table(
    data: datasets.Dataset | datasets.IterableDataset, name: str
) -> tuple[pyarrow.Schema | None, Iterator[Record]]:
    features = data.features
    return features and features.arrow_schema, ((name, record) for record in data)


def _json_files(builder: Json, name: str, files: list[str]) -> Iterator[Record]:
    """Records of each file in turn, unpacked where it is packed."""
    storage = builder.storage_options or {}
    options = datasets.DownloadConfig(token=builder.token, storage_options=storage, extract_on_the_fly=True)
    manager = datasets.StreamingDownloadManager(base_path=builder.base_path, download_config=options)
    # Each when it is its turn: where a name does not say how a file is packed, its first bytes are asked for.
    for path in (path for file in files for path in manager.iter_files(manager.download_and_extract(file))):
        place = f"{name}/{path.split('::')[0].rsplit('/', 1)[-1]}"
        with xopen(path, "rb", download_config=options) as file:
            stream: IO[bytes] = io.BufferedReader(_Raw(file), _PIECE)
            if builder.config.encoding != "utf-8":
                stream = codecs.EncodedFile(stream, "utf-8", builder.config.encoding)
            yield from json_records(stream, place, builder.config.field)
