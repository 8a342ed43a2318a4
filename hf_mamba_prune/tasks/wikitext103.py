"""WikiText-103 (arXiv 1609.07843): the perplexity of a language model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import default_collate
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM, PreTrainedModel

from hf_mamba_prune.demo import MODEL
from hf_mamba_prune.sequences import sample_sequences
from hf_mamba_prune.tasks.base import Examples, Scale, Splits, Task
from hf_mamba_prune.texts import read_text

TRAIN, VALIDATION, TEST = (
    ("wiki.train.raw", "enwiki.txt.xz"),
    ("wiki.valid.raw", "wiki.valid.tokens"),
    ("wiki.test.raw",),
)
"""Names of each part, the first that is there; `enwiki.txt.xz` stands in where the training part is not to be had."""


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(2, "no such file", str(folder / names[0]))


def _windows(path: Path, tokenizer, length: int, limit: int | None) -> Examples:
    """A text cut into windows that do not overlap, rows joined as everyone joins them who reports this perplexity."""
    ids = torch.tensor(tokenizer(read_text(str(path), "test").joined(), verbose=False).input_ids)
    rows = ids[: len(ids) // length * length].view(-1, length)
    return _examples(rows if limit is None else rows[:limit])


def _examples(rows: torch.Tensor) -> Examples:
    return Examples(len(rows), lambda i: {"input_ids": rows[i], "labels": rows[i]})


def _read(folder: Path, scale: Scale) -> Splits:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    validation, test = (_first(folder, names) for names in (VALIDATION, TEST))
    count = max(scale.steps, scale.recover_steps) * scale.batch_size
    text = read_text(str(_first(folder, TRAIN)), "train")
    train = sample_sequences(text, tokenizer, scale.examples or count, scale.length, 1)
    held = (_windows(path, tokenizer, scale.length, scale.evaluated) for path in (validation, test))
    return Splits(_examples(train), *held, default_collate)


def _build(scale: Scale) -> PreTrainedModel:
    """The bundled model where nothing is to be trained, otherwise a new one with its vocabulary."""
    if not scale.steps:
        return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    vocabulary = len(AutoTokenizer.from_pretrained(MODEL))
    return MambaForCausalLM(MambaConfig(vocab_size=vocabulary, **scale.model))


WIKITEXT103 = Task(
    "wikitext103",
    ("perplexity",),
    "Put wiki.train.raw, wiki.valid.raw and wiki.test.raw of WikiText-103 there.",
    _read,
    _build,
    {
        "small": Scale(
            {}, length=512, steps=0, recover_steps=300, batch_size=8, learning_rate=1e-3, evaluated=200,
            reduced=("the bundled model of 2.8 million weights", "windows of 512 tokens, 200 of the test part"),
        ),
        "paper": Scale(
            dict(hidden_size=768, num_hidden_layers=24, state_size=16, time_step_rank=48),
            length=1024, steps=100_000, recover_steps=10_000, batch_size=32, learning_rate=6e-4,
        ),
    },
    higher_is_better=False,
)  # fmt: skip
