"""Long Range Arena's Retrieval: does one paper of the ACL Anthology Network cite the other? Bytes of both."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import torch

from hf_mamba_prune.reproduce.tasks.base import Examples, Scale, Splits, Task, build_classifier, pad
from hf_mamba_prune.reproduce.tasks.text import byte_ids

FILES = {"train": "new_aan_pairs.train.tsv", "eval": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}


def read_pairs(path: Path, length: int | None = None, limit: int | None = None) -> list[tuple[int, bytes, bytes]]:
    """(label, text, text) of a file with the columns label, id1, id2, text1, text2.

    Args:
        path: the published one for training has 8 GB.
        length: bytes of a text that are kept, None: all.
        limit: rows that are read, None: all.

    Raises:
        ValueError: a row has other columns.
    """
    rows = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(itertools.islice(file, limit), 1):
            row = line.rstrip("\r\n").split("\t")
            if len(row) != 5:
                raise ValueError(
                    f"{path}, line {number}, has {len(row)} columns; expected label, id1, id2, text1, text2."
                )
            rows.append((int(float(row[0])), _bytes(row[3])[:length], _bytes(row[4])[:length]))
    return rows


def _bytes(text: str) -> bytes:
    """A text; the published files hold Python's way to write bytes, `b'...'`."""
    if text[:2] in ("b'", 'b"'):
        try:
            found = ast.literal_eval(text)
        except (SyntaxError, ValueError):  # a text that only begins like one
            return text.encode()
        return found if isinstance(found, bytes) else text.encode()
    return text.encode()


def _read(folder: Path, scale: Scale) -> Splits:
    limits = scale.examples, scale.evaluated, scale.evaluated
    train, validation, test = (
        _split(read_pairs(folder / name, scale.length, limit), scale.length)
        for name, limit in zip(FILES.values(), limits, strict=True)
    )
    return Splits(train=train, validation=validation, test=test, collate=pad)


def _split(rows: list[tuple[int, bytes, bytes]], length: int) -> Examples:
    def make(i: int) -> dict[str, torch.Tensor]:
        label, one, other = rows[i]
        ids = [byte_ids(text, length).long() for text in (one, other)]
        return {"input_ids": ids[0], "pair_input_ids": ids[1], "labels": torch.tensor(label)}

    return Examples(len(rows), make)


RETRIEVAL = Task(
    name="retrieval",
    metrics=("accuracy",),
    source=f"Put {', '.join(FILES.values())} of Long Range Arena's release there "
    "(github.com/google-research/long-range-arena).",
    read=_read,
    build=build_classifier(2, 257, paired=True, bidirectional=True),
    scales={
        "small": Scale(
            model=dict(hidden_size=64, num_hidden_layers=2, state_size=16, time_step_rank=4),
            length=512, steps=1500, recover_steps=400, batch_size=16, learning_rate=2e-3,
            examples=24_000, evaluated=2000,
            reduced=("512 bytes instead of 4,000", "24,000 pairs instead of 147,000, 2,000 of the test part"),
        ),
        "paper": Scale(
            model=dict(hidden_size=256, num_hidden_layers=6, state_size=16, time_step_rank=16),
            length=4000, steps=50_000, recover_steps=10_000, batch_size=32, learning_rate=1e-3,
        ),
    },
)  # fmt: skip
