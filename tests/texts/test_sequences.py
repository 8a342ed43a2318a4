"""Calibration windows are runs of the text's own tokens, drawn by the seed from all of it."""

from __future__ import annotations

import pytest
import torch

from hf_mamba_prune.texts.sequences import part_of_step, sample_sequences
from hf_mamba_prune.texts.sources import TextSource

LINES = TextSource("lines", tuple(f" line number {i} of the thing\n" if i % 5 else "" for i in range(200)))
DOCUMENTS = TextSource("documents", tuple(f"document {i} begins and ends" for i in range(50)))
LONG = TextSource("long", (" ".join(str(i) for i in range(4000)),))


@pytest.mark.parametrize(
    ("source", "whole"),
    [
        (LINES, "".join(row or " \n" for row in LINES.documents)),
        (DOCUMENTS, "\n\n".join(DOCUMENTS.documents) + "\n\n"),
        (LONG, LONG.documents[0]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_windows_are_pieces_of_the_joined_text(tokenizer, source, whole):
    ids = sample_sequences(source, tokenizer, 12, 40, seed=0)
    assert ids.shape == (12, 40) and ids.dtype == torch.int64
    texts = tokenizer.batch_decode(ids)
    assert all(text in whole for text in texts)
    assert len(set(texts)) == 12


def test_windows_start_at_rows_and_run_on_into_the_next(tokenizer):
    texts = tokenizer.batch_decode(sample_sequences(LINES, tokenizer, 12, 60, seed=0))
    assert all(text.startswith(" line number ") and text.count("\n") >= 1 for text in texts)
    starts = {text.split("\n")[0] for text in texts}
    assert len(starts) == 12  # no row starts two windows while there are others


def test_windows_of_one_long_document_start_anywhere_in_it(tokenizer):
    texts = tokenizer.batch_decode(sample_sequences(LONG, tokenizer, 20, 30, seed=0))
    places = [LONG.documents[0].index(text) / len(LONG.documents[0]) for text in texts]
    assert min(places) < 0.25 and max(places) > 0.75


def test_the_seed_decides(tokenizer):
    first, again, other = (sample_sequences(LINES, tokenizer, 5, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_short_text_is_used_more_than_once(tokenizer):
    source = TextSource("short", ("a text that makes one window only",))
    ids = sample_sequences(source, tokenizer, 4, 20, seed=0)
    assert ids.shape == (4, 20)


def test_a_text_that_makes_no_window_is_refused(tokenizer):
    source = TextSource("tiny.txt", ("far too short",))
    with pytest.raises(ValueError, match="tiny.txt is too short: it has 13 characters, .* no sequence of 64 tokens"):
        sample_sequences(source, tokenizer, 1, 64, seed=0)


@pytest.mark.parametrize(("steps", "parts", "sizes"), [(8, 4, {4}), (8, 8, {2}), (3, 8, {5, 6}), (1, 8, {16})])
def test_steps_divide_the_calibration_among_them(steps, parts, sizes):
    sequences = torch.arange(16)[:, None]
    seen = [part_of_step(sequences, step, steps, parts, seed=0) for step in range(1, steps + 1)]
    assert {len(part) for part in seen} == sizes
    turn = min(steps, parts)
    for first in range(0, steps, turn):
        assert sorted(torch.cat(seen[first : first + turn]).flatten().tolist()) == list(range(16))
    assert steps == 1 or not torch.equal(seen[0], part_of_step(sequences, 1, steps, parts, seed=1))


def test_there_are_no_more_parts_than_sequences():
    assert len(part_of_step(torch.arange(3)[:, None], 8, 8, 8, seed=0)) == 1
