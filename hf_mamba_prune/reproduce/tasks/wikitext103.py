"""WikiText-103 (arXiv 1609.07843): the perplexity of a language model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import default_collate
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM, PreTrainedModel

from hf_mamba_prune.demo import MODEL
from hf_mamba_prune.reproduce.tasks.base import Examples, Scale, Splits, Task
from hf_mamba_prune.texts.sources import read_text

TRAIN, VALIDATION, TEST = (
    ("wiki.train.raw", "enwiki.txt.xz"),
    ("wiki.valid.raw", "wiki.valid.tokens"),
    ("wiki.test.raw",),
)
"""Names of each part, the first that is there; `enwiki.txt.xz` stands in where the training part is not to be had."""
_ALL = 1_000_000_000
"""More characters than the training part has."""
_ROWS = 10_000
"""Rows that the tokenizer gets at once."""


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(2, "no such file", str(folder / names[0]))


def _ids(path: Path, tokenizer) -> torch.Tensor:
    """The tokens of a text, rows joined as everyone joins them who reports this perplexity; int32 (tokens,)."""
    rows = read_text(str(path), "test", most_characters=_ALL).documents
    pieces = ("\n\n".join(rows[i : i + _ROWS]) + "\n\n" * (i + _ROWS < len(rows)) for i in range(0, len(rows), _ROWS))
    return torch.cat([torch.tensor(tokenizer(piece, verbose=False).input_ids, dtype=torch.int32) for piece in pieces])


def _window(ids: torch.Tensor, start: int, length: int) -> dict[str, torch.Tensor]:
    window = ids[start : start + length].long()
    return {"input_ids": window, "labels": window}


def _held(ids: torch.Tensor, length: int, limit: int | None) -> Examples:
    """Windows that do not overlap."""
    count = len(ids) // length
    return Examples(count if limit is None else min(limit, count), lambda i: _window(ids, i * length, length))


def _drawn(ids: torch.Tensor, length: int, count: int) -> Examples:
    """As many windows as a training sees, at random places."""
    starts = torch.randint(len(ids) - length, (count,), generator=torch.Generator().manual_seed(1))
    return Examples(count, lambda i: _window(ids, int(starts[i]), length))


def _read(folder: Path, scale: Scale) -> Splits:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train, validation, test = (_first(folder, names) for names in (TRAIN, VALIDATION, TEST))
    held = [_held(_ids(path, tokenizer), scale.length, scale.evaluated) for path in (validation, test)]
    count = max(scale.steps, scale.recover_steps) * scale.batch_size
    stand_ins = ["a vocabulary of 4,096, so that perplexities of others are no measure"]
    stand_ins += [] if train.name == TRAIN[0] else [f"trained on {train.name}, other Wikipedia articles"]
    drawn = _drawn(_ids(train, tokenizer), scale.length, count)
    return Splits(train=drawn, validation=held[0], test=held[1], collate=default_collate, stand_ins=tuple(stand_ins))


def _build(scale: Scale) -> PreTrainedModel:
    """The bundled model where nothing is to be trained, otherwise a new one with its vocabulary."""
    if not scale.steps:
        return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    vocabulary = len(AutoTokenizer.from_pretrained(MODEL))
    return MambaForCausalLM(MambaConfig(vocab_size=vocabulary, **scale.model))


WIKITEXT103 = Task(
    name="wikitext103",
    metrics=("perplexity",),
    source="Put wiki.train.raw, wiki.valid.raw and wiki.test.raw of WikiText-103 there.",
    read=_read,
    build=_build,
    scales={
        "small": Scale(
            model={}, length=512, steps=0, recover_steps=300, batch_size=8, learning_rate=1e-3, evaluated=200,
            reduced=("the bundled model of 2.8 million weights", "windows of 512 tokens, 200 of the test part"),
        ),
        "paper": Scale(
            model=dict(hidden_size=768, num_hidden_layers=24, state_size=16, time_step_rank=48),
            length=1024, steps=100_000, recover_steps=10_000, batch_size=32, learning_rate=6e-4,
        ),
    },
    higher_is_better=False,
)  # fmt: skip
