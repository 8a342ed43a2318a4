"""Long Range Arena's Text: is a review good or bad, byte by byte."""

from __future__ import annotations

import io
import itertools
import zipfile
from pathlib import Path

import torch

from hf_mamba_prune.reproduce.tasks.base import (
    Examples,
    Scale,
    Splits,
    Task,
    build_classifier,
    pad,
    shuffled,
    tokens_and_label,
)

CLASSES = ("neg", "pos")
ARCHIVE = "movie_reviews.zip"


def byte_ids(text: bytes, length: int) -> torch.Tensor:
    """Bytes as token ids 1 to 256; 0 is the padding, which alone stands for an empty text."""
    if not text:
        return torch.zeros(1, dtype=torch.int16)
    return torch.frombuffer(bytearray(text[:length]), dtype=torch.uint8).short() + 1


def _reviews(folder: Path) -> list[tuple[str, bytes, int]]:
    """(split, text, class) of the IMDB folder `aclImdb`, or of 2,000 reviews in `movie_reviews.zip`.

    Raises:
        FileNotFoundError: neither is there, or the folder is not whole.
    """
    imdb = folder / "aclImdb"
    found: list[tuple[str, bytes, int]] = []
    if imdb.is_dir():
        for split, (label, name) in itertools.product(("train", "test"), enumerate(CLASSES)):
            paths = sorted((imdb / split / name).glob("*.txt"))
            if not paths:
                raise FileNotFoundError(2, "no review in", str(imdb / split / name))
            found += [(split, path.read_bytes(), label) for path in paths]
        return found
    archive = folder / ARCHIVE
    if not archive.is_file():
        raise FileNotFoundError(2, "no such file", str(imdb))
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as files:
        for name in sorted(files.namelist()):
            kind = Path(name).parent.name
            if kind in CLASSES and name.endswith(".txt"):
                found.append(("", files.read(name), CLASSES.index(kind)))
    if not found:
        raise FileNotFoundError(2, "no review in", str(archive))
    return found


def _read(folder: Path, scale: Scale) -> Splits:
    reviews = _reviews(folder)
    order = [reviews[i] for i in shuffled(len(reviews))]
    test = [row for row in order if row[0] == "test"]
    rest = [row for row in order if row[0] != "test"]
    held = len(rest) // 10
    if not test:  # one set: a fifth of it is held for the test
        test, rest = rest[: 2 * held], rest[2 * held :]
    parts = rest[held:], rest[:held], test
    limits = scale.examples, scale.evaluated, scale.evaluated
    train, validation, held_out = (
        _split(rows, scale.length, limit) for rows, limit in zip(parts, limits, strict=True)
    )
    stand_ins = () if reviews[0][0] else (f"{len(reviews):,} film reviews instead of IMDB's 50,000",)
    return Splits(train=train, validation=validation, test=held_out, collate=pad, stand_ins=stand_ins)


def _split(rows: list[tuple[str, bytes, int]], length: int, limit: int | None) -> Examples:
    return tokens_and_label(
        [byte_ids(text, length) for _, text, _ in rows], torch.tensor([row[2] for row in rows]), limit
    )


TEXT = Task(
    name="text",
    metrics=("accuracy",),
    source="Put the folder aclImdb of IMDB's large movie review data set there "
    "(ai.stanford.edu/~amaas/data/sentiment), or "
    "NLTK's movie_reviews.zip, which has 2,000 reviews.",
    read=_read,
    build=build_classifier(2, 257, bidirectional=True),
    scales={
        "small": Scale(
            model=dict(hidden_size=64, num_hidden_layers=2, state_size=16, time_step_rank=4),
            length=1024, steps=900, recover_steps=200, batch_size=16, learning_rate=2e-3,
            reduced=("1,024 bytes instead of 4,096",),
        ),
        "paper": Scale(
            model=dict(hidden_size=256, num_hidden_layers=6, state_size=16, time_step_rank=16),
            length=4096, steps=25_000, recover_steps=5_000, batch_size=16, learning_rate=1e-3,
        ),
    },
)  # fmt: skip
