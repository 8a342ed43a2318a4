"""What is left of a model after zeros and rounding learns: from which text, from whom, and from how much of it."""

from __future__ import annotations

import pytest
import torch

from hf_mamba_prune import pruning
from hf_mamba_prune.bits.model import round_model
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.pruning import prepare, prune
from hf_mamba_prune.repair.tuning import sequences_to_tune, tune
from hf_mamba_prune.texts.sources import TextSource

TEXT = TextSource("some text", tuple(f" The thing number {i} in the other .\n" for i in range(40)))
SMALL = dict(calibration_samples=2, calibration_length=12)


@pytest.mark.parametrize("options", [{"sparsity": 0.5, "code_bits": 2, "reconstruct": False}, {"bits": 2.5}])
def test_what_is_rounded_learns_from_the_model_that_came(mamba, tokenizer, monkeypatch, options):
    came, teachers = weights_sha256(mamba), []

    def watched(*args, dense, **rest):
        teachers.append(weights_sha256(dense))
        return round_model(*args, dense=dense, **rest)

    monkeypatch.setattr(pruning, "round_model", watched)
    prune(mamba, tokenizer, PruningConfig(**options, **SMALL), TEXT)
    assert teachers == [came] != [weights_sha256(mamba)]


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"bits": 2.5}])
def test_what_is_left_learns_from_more_of_the_text_than_scores_are_measured_on(mamba, tokenizer, monkeypatch, options):
    measured, learned = [], []

    def watched(model, dense, moved, sequences, **rest):
        learned.append(sequences)
        return tune(model, dense, moved, sequences, **rest)

    for place in ("hf_mamba_prune.repair.tuning.tune", "hf_mamba_prune.bits.tuning.tune"):
        monkeypatch.setattr(place, watched)
    monkeypatch.setattr(pruning, "prepare", lambda **given: measured.append(ready := prepare(**given)) or ready)
    report = prune(mamba, tokenizer, PruningConfig(**options, **SMALL), TEXT)
    (ready,), (sequences,) = measured, learned
    assert report.calibration.learned == len(ready.lessons) == 8 * len(ready.sequences)
    assert torch.equal(ready.lessons[: len(ready.sequences)], ready.sequences)
    assert torch.equal(sequences[: len(ready.lessons)], ready.lessons)  # and random ones behind them
    assert len(sequences) > len(ready.lessons)


def test_what_only_masks_learns_nothing(mamba, tokenizer):
    report = prune(mamba, tokenizer, PruningConfig(sparsity=0.5, reconstruct=False, **SMALL), TEXT)
    assert report.calibration.learned == 0


def test_a_big_model_learns_from_few_sequences_on_a_cpu():
    assert sequences_to_tune(3_000_000, 128, 512) == 1024
    assert sequences_to_tune(130_000_000, 64, 512) == 30
    assert sequences_to_tune(3_000_000_000, 64, 512) == 4
    assert sequences_to_tune(3_000_000_000, 64, 512, on_cpu=False) == 512
