"""The rivals' ladder counts what it should: windows, bits, ratios, and every weight of a model by its own name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tiny_models import build_model

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def ladder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in (BENCHMARKS, BENCHMARKS / "rivals"):
        monkeypatch.syspath_prepend(folder)
    import ladder

    return ladder


def test_a_longer_choice_of_windows_goes_on_from_a_shorter_one(ladder: ModuleType):
    tokens = 10 * ladder.WINDOW + 2
    few, _ = ladder.choose_windows(tokens, 4)
    every, counts = ladder.choose_windows(tokens, None)
    assert every[:4] == few and sorted(every) == list(range(11))
    assert counts.sum() == tokens - 11, "the first token of each window is not predicted"


def test_a_single_token_makes_no_window(ladder: ModuleType):
    assert ladder.choose_windows(ladder.WINDOW + 1, None)[0] == [0]


def test_a_ratio_is_that_of_perplexities_over_all_tokens(ladder: ModuleType):
    counts = np.array([100, 50])
    found = ladder.compare(np.array([310.0, 150.0]), np.array([300.0, 150.0]), counts)
    assert found["ratio"] == pytest.approx(math.exp(10 / 150))
    assert found["dense"] == pytest.approx(math.exp(3)) and found["tokens"] == 150
    assert found["error"] == pytest.approx(found["ratio"] * 0.05), "0.1 and 0 nats a token in two windows"


def test_bits_are_those_of_projections_alone(ladder: ModuleType):
    tensors = {"blk.0.ssm_in.weight": ("Q4_K", 90), "blk.1.ssm_in.weight": ("Q5_K", 110), "blk.0.ssm_a": ("F32", 64)}
    found = ladder.describe(tensors | {"token_embd.weight": ("Q6_K", 1000)}, weights=400)
    assert found["bits"] == pytest.approx(8 * 200 / 400)
    assert found["parts"] == {"in_proj": "Q4_K/Q5_K", "head": "Q6_K"}


def test_every_weight_of_a_model_is_converted(ladder: ModuleType, tmp_path: Path):
    import mamba_gguf

    model = build_model("mamba")
    model.save_pretrained(tmp_path)
    weights = mamba_gguf.read_weights(tmp_path)
    names = {mamba_gguf.gguf_name(name) for name in weights}
    assert len(names) == len(weights) == len(list(model.parameters())), "the tied head is no weight of its own"
    projections = [weight for name, weight in model.named_parameters() if name.endswith("_proj.weight")]
    assert mamba_gguf.count_projections(tmp_path) == sum(weight.numel() for weight in projections)
    with pytest.raises(ValueError, match="no weight of MambaForCausalLM"):
        mamba_gguf.gguf_name("backbone.layers.0.mixer.in_proj.bias")


def test_a_decay_is_written_as_what_it_does(ladder: ModuleType):
    import mamba_gguf

    assert np.allclose(mamba_gguf._values("backbone.layers.0.mixer.A_log", torch.log(torch.tensor([[2.0]]))), -2)
    assert mamba_gguf._values("backbone.layers.0.mixer.conv1d.weight", torch.zeros(6, 1, 4)).shape == (6, 4)


def test_the_table_shows_the_longest_measurement(ladder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ladder_tables

    monkeypatch.setattr(ladder_tables, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(ladder_tables, "ROWS", tmp_path / "rows.jsonl")
    row = {"model": "m", "type": "Q2_K", "importance": True, "text": "C4", "bits": 2.5, "file_bytes": 9, "error": 0.01}
    row |= {"parts": {"in_proj": "Q2_K", "head": "Q6_K"}, "tokens": 7, "perplexity": 1.0, "dense": 1.0, "rival": "r"}
    rows = [row | {"windows": 24, "ratio": 1.25}, row | {"windows": 8, "ratio": 1.5}]
    rows.append({"model": "m", "type": "IQ1_S", "importance": False, "refused": True, "reason": "needs a matrix"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ladder_tables.write_table()
    table = (tmp_path / "table.md").read_text()
    assert "1.2500 ± 0.0100 (24)" in table and "1.5000" not in table
    assert "- IQ1_S: not measured: needs a matrix" in table
