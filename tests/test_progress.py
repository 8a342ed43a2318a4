"""A program can follow a run without a terminal."""

from __future__ import annotations

from hf_mamba_prune import Evaluation, PruningConfig, TextSource, follow, prune
from hf_mamba_prune.progress import tell, track


def test_a_follower_hears_every_item_and_no_more_after_it_has_gone():
    heard = []
    with follow(heard.append):
        assert list(track("abc", "count", "letter")) == ["a", "b", "c"]
        assert list(track((letter for letter in "ab"), "count", "letter", 2)) == ["a", "b"]
    list(track("abc", "count", "letter"))
    tell("count", loss=1.0)
    assert [(said.done, said.total) for said in heard] == [(0, 3), (1, 3), (2, 3), (3, 3), (0, 2), (1, 2), (2, 2)]


def test_a_pruning_tells_its_sparsity_loss_and_perplexity(mamba, tokenizer):
    text = TextSource("some text", tuple(f" The thing number {i} in the other .\n" for i in range(40)))
    heard = []
    with follow(heard.append):
        config = PruningConfig(0.6, steps=3, calibration_samples=2, calibration_length=12)
        report = prune(mamba, tokenizer, config, text, Evaluation(texts=(text,), window=32, max_windows=2))
    values = {name: [s.values[name] for s in heard if name in s.values] for name in ("sparsity", "loss", "perplexity")}
    assert len(values["sparsity"]) == 3 and values["sparsity"] == sorted(values["sparsity"])
    assert values["sparsity"][-1] == 0.6
    assert len(values["loss"]) == 3 and all(loss > 0 for loss in values["loss"])
    assert values["perplexity"] == [report.before[0].perplexity, report.after[0].perplexity]
