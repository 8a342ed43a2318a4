"""A finished pruning is kept, whatever fails after it: the report says what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from hf_mamba_prune import EvaluationChoice, ModelChoice, PruningConfig, PruningJob, PruningReport
from hf_mamba_prune.command import cli
from hf_mamba_prune.files.products import foreign_files
from hf_mamba_prune.job import AnalysisJob, analysis
from hf_mamba_prune.job import prune as job_prune
from hf_mamba_prune.publish import extras

TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60


@pytest.fixture
def job(tmp_path, monkeypatch) -> PruningJob:
    """Prunes a tiny model, packs it, and is measured on a text; the three processes of the speeds are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_prune, "compare_speeds", lambda *arguments: iter(()))
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    config = PruningConfig(0.5, score="magnitude", reconstruct=False, steps=1)
    evaluation = EvaluationChoice(texts=("text.txt",), window=32)
    return PruningJob(
        model=ModelChoice(source="model"), config=config, output=Path("out"), evaluation=evaluation, pack="auto"
    )


FAILING = {
    "draw_figures": (extras, ValueError("Axis limits cannot be NaN or Inf"), "The figures could not be made: Axis"),
    "write_card": (extras, KeyError("text"), "The card could not be made: 'text'."),
    "write_packed_model": (job_prune, OSError(28, "No space left", "/home/me/out"), "The packed checkpoint could"),
    "compare_speeds": (job_prune, RuntimeError("the process that measured /home/me/out died"), "The comparison of"),
}


@pytest.mark.parametrize("name", FAILING)
def test_weights_and_report_stand_when_something_fails_after_them(job, monkeypatch, name):
    where, error, message = FAILING[name]

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(where, name, fail)
    returned = job.run()
    report = PruningReport.load("out")
    assert report == returned and len(report.warnings) == 1 and report.warnings[0].startswith(message)
    assert "/home" not in Path("out/report.json").read_text(encoding="utf-8")
    model, found = AutoModelForCausalLM.from_pretrained("out", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert sum(int((weight == 0).sum()) for weight in model.parameters()) == report.sparsity.model.zeros
    assert Path("out/packed").is_dir() == (name != "write_packed_model")
    assert Path("out/figures/quality.png").is_file() == (name != "draw_figures")
    assert foreign_files(Path("out")) == []
    assert Path("out/README.md").is_file()  # written again with the speeds
    assert sorted(path.name for path in Path().iterdir()) == ["model", "out", "text.txt"]


def test_the_command_ends_well_and_says_what_is_missing(job, monkeypatch, capsys):
    def fail(*arguments: object) -> None:
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr(extras, "draw_figures", fail)
    prune = ["model", "--score", "magnitude", "--no-reconstruct", "--no-eval", "--output", "out"]
    with pytest.raises(SystemExit) as ended:
        cli.main(prune)
    assert not ended.value.code
    assert "The figures could not be made: Axis limits cannot be NaN or Inf." in capsys.readouterr().out


def test_speeds_are_measured_on_a_result_that_stands_and_written_into_it(job, monkeypatch):
    seen = []

    def look(dense: Path, packed: Path):
        seen.append((PruningReport.load(dense).speeds, (packed / "config.json").is_file(), dense))
        return iter(())

    monkeypatch.setattr(job_prune, "compare_speeds", look)
    job.run()
    assert seen == [((), True, Path("out"))]


def test_a_result_that_another_run_replaced_meanwhile_is_left_alone(job, monkeypatch):
    def replaced(dense: Path, packed: Path):
        (dense / "report.json").write_text("another's", encoding="utf-8")
        return iter(())

    monkeypatch.setattr(job_prune, "compare_speeds", replaced)
    report = job.run()
    assert report.warnings == (
        "The report with the speeds could not be made: another run replaced the result meanwhile.",
    )
    assert Path("out/report.json").read_text(encoding="utf-8") == "another's"


def test_an_analysis_stands_without_its_figure(job, monkeypatch):
    def fail(*arguments: object) -> None:
        raise ValueError("Axis limits cannot be NaN or Inf")

    monkeypatch.setattr(analysis, "draw_analysis", fail)
    config = replace(job.config, score="magnitude", calibration_samples=2, calibration_length=16)
    wanted = AnalysisJob(
        model=job.model, config=config, output=Path("found"), calibration="text.txt", column=None,
        evaluation=replace(job.evaluation, max_windows=1), levels=(0.5,),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="the analysis is in found, but its figure could not be drawn .Axis"):
        wanted.run()
    assert json.loads(Path("found/analysis.json").read_text(encoding="utf-8"))
