"""One truth about a run: what it reads, how much it trains, what it would cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import EvaluationChoice, ModelChoice, PruningConfig, PruningJob, RecoveryChoice
from hf_mamba_prune.job import TRAINING_LENGTH
from hf_mamba_prune.measure.zero_shot import ZeroShot

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 2000
SMALL = dict(calibration_samples=2, calibration_length=16, steps=1)


@pytest.fixture
def job(tmp_path, monkeypatch) -> PruningJob:
    """Prunes a tiny model, measured on nothing."""
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    Path("other.txt").write_text(TEXT, encoding="utf-8")
    return PruningJob(
        model=ModelChoice(source="model"),
        config=PruningConfig(0.5, **SMALL),
        output=Path("out"),
        calibration="text.txt",
    )


TRAINED = RecoveryChoice(steps=2, batch_size=1, distill=False)
GRADUAL = replace(TRAINED, gradual=True, steps=4)


def test_a_gradual_recovery_that_measures_on_the_calibration_gets_its_text(job):
    config = PruningConfig(0.5, measure="calibration", score="wanda", reconstruct=False, **SMALL)
    job = replace(job, config=config, recovery=replace(GRADUAL, text="other.txt"))
    assert job.sources() == ["model", "text.txt", "other.txt"]
    report = job.run()
    assert report.calibration.source == "text.txt" and report.recovery.text == "other.txt"
    assert report.recovery.gradual and report.sparsity.prunable.zeros == report.sparsity.masked > 0


@pytest.mark.parametrize(
    "fields, recovery, read",
    [
        (dict(), None, ["text.txt"]),
        (dict(score="magnitude", reconstruct=False), None, []),
        (dict(score="magnitude"), None, ["text.txt"]),
        (dict(score="magnitude", reconstruct=False, allocation="sensitivity"), None, ["text.txt"]),
        (dict(score="magnitude", reconstruct=False), TRAINED, ["text.txt"]),
        (dict(), replace(TRAINED, text="other.txt"), ["text.txt", "other.txt"]),
        (dict(), replace(GRADUAL, text="other.txt"), ["other.txt"]),
        (dict(measure="calibration"), replace(GRADUAL, text="other.txt"), ["text.txt", "other.txt"]),
        (dict(measure="calibration", score="magnitude"), replace(GRADUAL, text="other.txt"), ["other.txt"]),
    ],
)
def test_the_sources_of_a_job_are_what_it_reads(job, fields, recovery, read):
    job = replace(job, config=PruningConfig(0.5, **SMALL, **fields), recovery=recovery)
    assert job.sources() == ["model", *read]
    for name in {"text.txt", "other.txt"} - set(read):
        Path(name).unlink()
    job.prepare()
    for name in read:
        Path(name).rename("moved")
        with pytest.raises(ValueError, match=f"there is no file {name}"):
            job.prepare()
        Path("moved").rename(name)


def test_texts_tasks_and_tokenizer_are_sources_too(job):
    evaluation = EvaluationChoice(texts=("a.txt", "text.txt"), tasks=ZeroShot(tasks=("piqa",)))
    job = replace(job, model=ModelChoice(source="model", tokenizer="words"), evaluation=evaluation)
    assert job.sources() == ["model", "words", "text.txt", "a.txt", "piqa"]


def test_the_plan_counts_the_tokens_that_the_report_counts(job):
    job = replace(job, recovery=TRAINED)
    assert job.plan().training_tokens == 2 * TRAINING_LENGTH == job.run().recovery.tokens


def test_a_plan_costs_what_is_done_and_no_more(job):
    """Memory, as the seconds are measured: pruning in training neither reconstructs nor calibrates."""
    wide = PruningConfig(0.5, calibration_samples=4096, calibration_length=512, score="gradient-magnitude")
    at_rest = replace(job, config=wide, recovery=TRAINED).plan()
    gradual = replace(job, config=wide, recovery=replace(TRAINED, gradual=True, steps=64)).plan()
    assert gradual.memory_bytes < at_rest.memory_bytes / 2
    assert replace(job, config=wide).plan().training_tokens == 0


def test_nothing_to_measure_or_train_on_is_refused(job):
    with pytest.raises(ValueError, match="give --calibration"):
        replace(job, calibration=None).prepare()
    config = PruningConfig(0.5, score="magnitude", reconstruct=False)
    with pytest.raises(ValueError, match="give --recover-dataset"):
        replace(job, calibration=None, config=config, recovery=TRAINED).prepare()
