"""Each part is pruned alone, as much as said, and the model is left as it was."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune import Evaluation, PruningConfig, TextSource
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.measure.analysis import ANALYSIS_NAME, analyze
from hf_mamba_prune.publish.figures import draw_analysis

SEQUENCES = torch.randint(VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(4))
HELD = Evaluation(texts=(TextSource("held", ("the cat in the hat " * 12,)),), window=32)


def test_curves_of_every_component_part_and_block(case, tokenizer):
    model = build_model(case)
    before = weights_sha256(model)
    found = analyze(model, tokenizer, SEQUENCES, HELD, PruningConfig(), (0.0, 0.5))
    assert weights_sha256(model) == before
    names = [curve.name for curve in found.components]
    wanted = {"in_proj", "in_proj.x", "out_proj", "conv1d", "D", "embeddings", "A_log"}
    assert wanted <= set(names) and len(names) == len(set(names))
    assert [curve.name for curve in found.blocks] == ["block 0", "block 1"]
    assert [case.level for case in found.together] == [0.0, 0.0, 0.5] and found.together[0].rise == 0
    assert found.together[0].decays == found.together[1].decays != found.together[2].decays
    for curve in (*found.components, *found.blocks):
        assert curve.rises[0] == 0 and math.isfinite(curve.rises[1])
    changed = [curve.name for curve in found.components if curve.rises[1] != 0]
    assert set(names) == set(changed)
    sizes = {curve.name: curve.weights for curve in found.components}
    assert sizes["in_proj"] == sum(size for name, size in sizes.items() if name.startswith("in_proj."))


def test_a_component_alone_costs_what_pruning_it_costs(mamba, tokenizer):
    found = analyze(mamba, tokenizer, SEQUENCES, HELD, PruningConfig(score="magnitude"), (0.5,))
    (curve,) = [curve for curve in found.components if curve.name == "dt_proj"]
    for name, weight in mamba.named_parameters():
        if name.endswith("dt_proj.weight"):
            flat = weight.detach().view(-1)
            flat[flat.abs().argsort()[: flat.numel() // 2]] = 0
    rise = math.log(HELD.run(mamba, tokenizer)[0].perplexity) - found.dense_loss
    assert curve.rises == (pytest.approx(rise, abs=1e-9),)


def test_it_is_saved_and_drawn(mamba, tokenizer, tmp_path):
    found = analyze(mamba, tokenizer, SEQUENCES, HELD, PruningConfig(), (0.3, 0.6))
    found.save(tmp_path)
    values = json.loads((tmp_path / ANALYSIS_NAME).read_text())
    assert values["text"] == "held" and len(values["components"]) == len(found.components)
    drawn = draw_analysis(found, tmp_path / "figures")
    assert drawn.name == "analysis.png" and drawn.stat().st_size > 10_000


def test_without_a_text_it_is_refused(mamba, tokenizer):
    with pytest.raises(ValueError, match="give it a held text"):
        analyze(mamba, tokenizer, SEQUENCES, Evaluation(), PruningConfig())
