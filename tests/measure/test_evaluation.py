"""Perplexity is that of a naive computation from the full logits, and every token is counted once."""

from __future__ import annotations

import math

import pytest
import torch

from hf_mamba_prune.measure.evaluation import Evaluation, source_bytes, source_words
from hf_mamba_prune.texts.sources import TextSource

ROWS = ("", " = A heading = \n", "", " The thing in the \u00e4ther is a thing , and then another . \n", "")
SOURCE = TextSource("some text", ROWS)


def naive_losses(model, ids, window, stride):
    """Token index -> loss given the tokens before it in its window; full logits, float64, one window at a time."""
    losses = {}
    start = 0
    while start < len(ids) - 1:
        piece = ids[start : start + window]
        with torch.no_grad():
            logits = model(input_ids=piece[None], use_cache=False).logits[0].double()
        for i in range(1, len(piece)):
            if start + i not in losses:
                losses[start + i] = float(torch.logsumexp(logits[i - 1], 0) - logits[i - 1, piece[i]])
        if start + window >= len(ids):
            break
        start += stride
    return losses


def tokens_of(tokenizer):
    return torch.tensor(tokenizer("\n\n".join(ROWS)).input_ids)


@pytest.mark.parametrize(
    ("window", "stride"), [(16, None), (16, 16), (16, 5), (16, 1), (7, None), (2, 1), (500, None)]
)
def test_perplexity_is_that_of_the_full_logits(mamba, tokenizer, window, stride):
    ids = tokens_of(tokenizer)
    (found,) = Evaluation(texts=(SOURCE,), window=window, stride=stride).run(mamba, tokenizer)
    losses = naive_losses(mamba, ids, window, stride or window)
    if stride in (None, window):  # the first token of every window has nothing before it
        assert set(losses) == {i for i in range(len(ids)) if i % window}
    else:
        assert set(losses) == set(range(1, len(ids)))
    assert found.tokens == len(losses)
    total = math.fsum(losses.values())
    assert found.perplexity == pytest.approx(math.exp(total / len(losses)), rel=1e-5)
    assert (found.text, found.window, found.stride, found.dtype) == ("some text", window, stride or window, "float32")
    assert found.tokens_per_second > 0


def test_every_architecture_and_dtype(model, tokenizer):
    losses = naive_losses(model, tokens_of(tokenizer), 16, 16).values()
    (found,) = Evaluation(texts=(SOURCE,), window=16).run(model, tokenizer)
    assert found.perplexity == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-5)
    (rough,) = Evaluation(texts=(SOURCE,), window=16).run(model.bfloat16(), tokenizer)
    assert rough.dtype == "bfloat16" and rough.perplexity == pytest.approx(found.perplexity, rel=0.1)


def test_bits_per_byte_and_word_perplexity_share_out_the_same_losses(mamba, tokenizer):
    (found,) = Evaluation(texts=(SOURCE,), window=500).run(mamba, tokenizer)
    total = math.log(found.perplexity) * found.tokens
    text = "".join(ROWS)
    assert (source_bytes(SOURCE), source_words(SOURCE)) == (len(text.encode()), len(text.split()))
    assert len(text.encode()) == len(text) + 1
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-9)
    assert math.log(found.word_perplexity) == pytest.approx(total / len(text.split()), rel=1e-9)


def test_a_look_at_the_first_windows_only(mamba, tokenizer):
    ids = tokens_of(tokenizer)
    (found,) = Evaluation(texts=(SOURCE,), window=16, max_windows=2).run(mamba, tokenizer)
    losses = naive_losses(mamba, ids[:32], 16, 16)
    assert found.tokens == len(losses) == 30
    assert found.perplexity == pytest.approx(math.exp(math.fsum(losses.values()) / 30), rel=1e-5)
    bytes_seen = round(source_bytes(SOURCE) * 32 / len(ids))
    assert found.bits_per_byte == pytest.approx(math.fsum(losses.values()) / math.log(2) / bytes_seen, rel=1e-5)


def test_a_window_longer_than_one_step_of_the_head(mamba, tokenizer):
    source = TextSource("long", ("The thing in the other . " * 40,))
    ids = torch.tensor(tokenizer(source.joined()).input_ids)
    assert len(ids) > 2 * 256 + 1
    (found,) = Evaluation(texts=(source,), window=1024).run(mamba, tokenizer)
    losses = naive_losses(mamba, ids, 1024, 1024).values()
    assert found.tokens == len(ids) - 1
    assert found.perplexity == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-5)


def test_several_texts_are_measured_each_by_itself_and_none_is_fine(mamba, tokenizer):
    other = TextSource("other", ("the other thing",))
    both = Evaluation(texts=(SOURCE, other), window=16).run(mamba, tokenizer)
    assert [metrics.text for metrics in both] == ["some text", "other"]
    assert both[1].perplexity == Evaluation(texts=(other,), window=16).run(mamba, tokenizer)[0].perplexity
    assert Evaluation().run(mamba, tokenizer) == ()


def test_the_mode_of_the_model_is_put_back(mamba, tokenizer):
    mamba.train()
    Evaluation(texts=(SOURCE,), window=16).run(mamba, tokenizer)
    assert mamba.training and all(p.grad is None for p in mamba.parameters())


def test_what_cannot_be_measured_is_refused(mamba, tokenizer):
    for options in (dict(window=1), dict(window=8, stride=9), dict(window=8, stride=0), dict(max_windows=0)):
        with pytest.raises(ValueError, match="expected"):
            Evaluation(texts=(SOURCE,), **options)
    with pytest.raises(ValueError, match="the evaluation text short has 1 tokens; at least 2 are needed"):
        Evaluation(texts=(TextSource("short", ("a",)),), window=16).run(mamba, tokenizer)
    mamba.backbone.norm_f.weight.data.fill_(math.nan)
    with pytest.raises(RuntimeError, match="the loss of an evaluation window is nan"):
        Evaluation(texts=(SOURCE,), window=16).run(mamba, tokenizer)
