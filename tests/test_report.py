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

METRICS = LanguageMetrics("wikitext", 20.0, 0.9, 40.0, 1000, 2048, 2048, "float32", 88.5)
REPORT = PruningReport(
    config=PruningConfig(component_sparsity={"out_proj": 0.4}, components=("in_proj", "out_proj")).to_dict(),
    model=ModelFacts("alice/model", "a" * 40, "mamba", 1000, 2, "bfloat16", "b" * 64),
    sparsity=SparsityFacts(
        asked=0.5,
        masked=300,
        prunable=Count("prunable weights", None, 600, 10, 305),
        model=Count("model", None, 1000, 12, 307),
        components=(Count("in_proj", None, 400, 10, 205), Count("in_proj.x", None, 200, 0, 100)),
        targets=(Count("layers.0.in_proj.weight", 0, 400, 10, 205), Count("embeddings.weight", None, 0, 0, 0)),
        at_ceiling=("layers.0.in_proj.weight",),
    ),
    calibration=CalibrationFacts("text.txt", 8, 32, "c" * 64),
    before=(METRICS,),
    after=(dataclasses.replace(METRICS, perplexity=25.0),),
    costs=(StepCost("calibrate", 1.5, 1 << 30),),
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
