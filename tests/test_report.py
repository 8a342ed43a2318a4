"""A report comes back from its file as it was, and says no more than it knows."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.report import (
    REPORT_NAME,
    CalibrationFacts,
    Count,
    LanguageMetrics,
    ModelFacts,
    PruningReport,
    SparsityFacts,
    StepCost,
)

METRICS = LanguageMetrics(
    text="wikitext",
    perplexity=20.0,
    bits_per_byte=0.9,
    word_perplexity=40.0,
    tokens=1000,
    window=2048,
    stride=2048,
    dtype="float32",
    tokens_per_second=88.5,
)
REPORT = PruningReport(
    config=PruningConfig(component_sparsity={"out_proj": 0.4}, components=("in_proj", "out_proj")).to_dict(),
    model=ModelFacts(
        id="alice/model",
        revision="a" * 40,
        model_type="mamba",
        parameters=1000,
        layers=2,
        dtype="bfloat16",
        weights_sha256="b" * 64,
    ),
    sparsity=SparsityFacts(
        asked=0.5,
        masked=300,
        prunable=Count(name="prunable weights", layer=None, weights=600, zeros_before=10, zeros=305),
        model=Count(name="model", layer=None, weights=1000, zeros_before=12, zeros=307),
        components=(
            Count(name="in_proj", layer=None, weights=400, zeros_before=10, zeros=205),
            Count(name="in_proj.x", layer=None, weights=200, zeros_before=0, zeros=100),
        ),
        targets=(
            Count(name="layers.0.in_proj.weight", layer=0, weights=400, zeros_before=10, zeros=205),
            Count(name="embeddings.weight", layer=None, weights=0, zeros_before=0, zeros=0),
        ),
        at_ceiling=("layers.0.in_proj.weight",),
    ),
    calibration=CalibrationFacts(source="text.txt", samples=8, length=32, tokens_sha256="c" * 64),
    before=(METRICS,),
    after=(dataclasses.replace(METRICS, perplexity=25.0),),
    costs=(StepCost(step="calibrate", seconds=1.5, peak_bytes=1 << 30),),
    versions={"python": "3.11"},
    hardware={"cores": 2, "device": "cpu"},
    command="hf-mamba-prune alice/model",
)


@pytest.mark.parametrize(
    "report", [REPORT, dataclasses.replace(REPORT, calibration=None, before=(), after=(), command=None)]
)
def test_json_round_trip(report, tmp_path):
    path = report.save(tmp_path)
    assert path == tmp_path / REPORT_NAME and path.read_text().endswith("}\n")
    assert PruningReport.load(tmp_path) == report
    assert PruningReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_the_config_in_it_is_the_config_of_the_run():
    assert PruningConfig.from_dict(json.loads(json.dumps(REPORT.to_dict()))["config"]).to_dict() == REPORT.config


def test_shares_and_ratios():
    assert REPORT.sparsity.prunable.sparsity == 305 / 600
    assert REPORT.sparsity.targets[1].sparsity == 0.0  # nothing of nothing
    assert REPORT.perplexity_ratio() == 1.25
    assert dataclasses.replace(REPORT, after=()).perplexity_ratio() is None


def test_a_folder_without_a_report_and_another_format(tmp_path):
    with pytest.raises(ValueError, match=f"holds no {REPORT_NAME}: it was not written by hf-mamba-prune"):
        PruningReport.load(tmp_path)
    (tmp_path / REPORT_NAME).write_text(json.dumps(REPORT.to_dict() | {"format_version": 99}))
    with pytest.raises(ValueError, match="has format 99; this version reads 1: use the version .* that wrote it"):
        PruningReport.load(tmp_path)
