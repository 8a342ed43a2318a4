"""Long Range Arena's ListOps (arXiv 2011.04006): nested MIN, MAX, MED and SM of digits; the answer is a digit."""

from __future__ import annotations

import csv
import os
import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from hf_mamba_prune.reproduce.tasks.base import Scale, Splits, Task, build_classifier, pad, tokens_and_label

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
WORDS = ("<pad>", *map(str, range(10)), *OPERATORS, "]")
_IDS = {word: i for i, word in enumerate(WORDS)}
DEPTH, ARGUMENTS, DIGIT = 10, 10, 0.25
"""Deepest nesting, most arguments, and the draw above which a place is a digit."""
SPLITS = {"train": 96_000, "val": 2_000, "test": 2_000}


def tree_words(source: str) -> list[str]:
    """The words of an expression: parentheses of the tree are dropped, `]` stays."""
    return [word for word in source.split() if word not in ("(", ")")]


def value_of(words: list[str]) -> int:
    """The value of an expression.

    Raises:
        ValueError: it is none.
    """
    operators: list[str] = []
    stack: list[list[int]] = [[]]
    for word in words:
        if word in OPERATORS:
            operators.append(word)
            stack.append([])
        elif word == "]":
            if len(stack) < 2 or not stack[-1]:
                raise ValueError("an expression that closes what it did not open, or has no arguments")
            values = stack.pop()
            stack[-1].append(_apply(operators.pop(), values))
        elif word in _IDS and word != WORDS[0]:
            stack[-1].append(int(word))
        else:
            raise ValueError(f"{word!r} is no word of ListOps")
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("an expression that is not closed, or more than one")
    return stack[0][0]


def _apply(operator: str, values: list[int]) -> int:
    if operator == "[MIN":
        return min(values)
    if operator == "[MAX":
        return max(values)
    return int(statistics.median(values)) if operator == "[MED" else sum(values) % 10


def draw_tree(draw: random.Random, depth: int = 1) -> tuple[list[str], int]:
    """One random expression and its length as the benchmark counts it: two for an operation, one for a digit."""
    if depth >= DEPTH or draw.random() > DIGIT:
        return [str(draw.randint(0, 9))], 1
    arguments = [draw_tree(draw, depth + 1) for _ in range(draw.randint(2, ARGUMENTS))]
    words = [draw.choice(OPERATORS), *(word for words, _ in arguments for word in words), "]"]
    return words, 2 + sum(length for _, length in arguments)


def generate(seed: int, shortest: int = 500, longest: int = 2000) -> Iterator[tuple[list[str], int]]:
    """Different expressions with their values, without end: those whose length lies between the limits, both excluded.

    Args:
        seed: of the draws.
        shortest, longest: lengths as the benchmark counts them.
    """
    draw, seen = random.Random(seed), set()
    while True:
        words, length = draw_tree(draw)
        if shortest < length < longest:
            source = " ".join(words)
            if source not in seen:
                seen.add(source)
                yield words, value_of(words)


def write_files(folder: Path, seed: int = 0, sizes: dict[str, int] | None = None, shortest=500, longest=2000) -> None:
    """Write `basic_{train,val,test}.tsv` as the benchmark has them, from one stream without repetitions."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = generate(seed, shortest, longest)
    for split, count in (sizes or SPLITS).items():
        path = folder / f"basic_{split}.tsv"
        temporary = path.with_suffix(f".{os.getpid()}.part")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write("Source\tTarget\n")
            for _ in range(count):
                words, value = next(stream)
                file.write(f"{' '.join(words)}\t{value}\n")
        temporary.replace(path)


def read_file(path: Path, length: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Token ids, cut at `length`, and values of a file, as published or as `write_files` writes it."""
    ids, labels = [], []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        for source, target in rows:
            words = tree_words(source)[:length]
            ids.append(torch.tensor([_IDS[word] for word in words], dtype=torch.uint8))
            labels.append(int(target))
    return ids, torch.tensor(labels)


SIZES = {"small": ((24, 96), {"train": 24_000, "val": 1_000, "test": 2_000}), "paper": ((500, 2000), SPLITS)}
"""Lengths between which, and how many expressions of each part."""


def _read(folder: Path, scale: Scale) -> Splits:
    """The published files when they are there; otherwise they are generated, once."""
    published = folder / "listops" if (folder / "listops").is_dir() else folder
    (shortest, longest), sizes = SIZES["small" if scale.reduced else "paper"]
    if scale.reduced or not (published / "basic_train.tsv").is_file():
        published = folder / f"listops-{shortest}-{longest}"
        if not (published / "basic_test.tsv").is_file():
            write_files(published, sizes=sizes, shortest=shortest, longest=longest)
    found = {split: read_file(published / f"basic_{split}.tsv", scale.length) for split in SPLITS}
    train = tokens_and_label(*found["train"], scale.examples)
    validation, test = (tokens_and_label(*found[split], scale.evaluated) for split in ("val", "test"))
    return Splits(train=train, validation=validation, test=test, collate=pad)


LISTOPS = Task(
    name="listops",
    metrics=("accuracy",),
    source="ListOps is generated where basic_train.tsv, basic_val.tsv and basic_test.tsv are not in the folder.",
    read=_read,
    build=build_classifier(10, len(WORDS)),
    scales={
        "small": Scale(
            model=dict(hidden_size=64, num_hidden_layers=4, state_size=16, time_step_rank=4),
            length=128, steps=3000, recover_steps=700, batch_size=32, learning_rate=2e-3,
            reduced=("24 to 96 tokens instead of 500 to 2,000", "24,000 examples instead of 96,000"),
        ),
        "paper": Scale(
            model=dict(hidden_size=256, num_hidden_layers=6, state_size=16, time_step_rank=16),
            length=2048, steps=50_000, recover_steps=10_000, batch_size=32, learning_rate=1e-3,
        ),
    },
)  # fmt: skip
