"""The bundled model and texts are whole and make the demo's result."""

from __future__ import annotations

from dataclasses import replace

from transformers import AutoModelForCausalLM

from hf_mamba_prune import demo
from hf_mamba_prune.job import EvaluationChoice, demo_job
from hf_mamba_prune.measure.evaluation import source_words
from hf_mamba_prune.texts.sources import read_text


def test_the_demo_prunes_the_bundled_model_and_may_be_repeated(tmp_path, speeds_here):
    job = demo_job(tmp_path / "out", 0.7)
    small = replace(
        job,
        config=replace(job.config, calibration_samples=2, calibration_length=64),
        evaluation=EvaluationChoice(texts=(str(demo.EVALUATION),), window=256, max_windows=2),
    )
    for _ in range(2):
        report = small.run()
    assert report.sparsity.masked == round(0.7 * 1_941_504) == report.sparsity.prunable.zeros
    assert report.before[0].perplexity < report.after[0].perplexity < 3 * report.before[0].perplexity
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() == 2_800_320


def test_the_bundled_texts_are_long_enough_for_the_demo():
    assert source_words(read_text(str(demo.CALIBRATION), "train")) > 64 * 512
    assert source_words(read_text(str(demo.EVALUATION), "test")) > 3 * 2048
