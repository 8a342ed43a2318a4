"""The pictures show every weight of the report and are drawn whole."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from hf_mamba_prune import Evaluation, PruningConfig, TextSource, find_targets, prune
from hf_mamba_prune.measure.analysis import Analysis, Curve
from hf_mamba_prune.publish.card import card_data, render_card
from hf_mamba_prune.publish.figures import _quality, _sparsity_grid, draw_analysis, draw_figures

TEXT = TextSource("text", ("the cat in the hat " * 20,))


@pytest.fixture
def report(mamba, tokenizer):
    config = PruningConfig(0.6, score="magnitude", reconstruct=False)
    return prune(mamba, tokenizer, config, evaluation=Evaluation(texts=(TEXT,), window=32))


def test_the_grid_holds_the_share_of_zeros_of_every_weight(report, mamba):
    names, layers, values = _sparsity_grid(report)
    assert names == ["in_proj", "x_proj", "dt_proj", "out_proj"] and layers == ["block 0", "block 1", "all"]
    for target in find_targets(mamba):
        share = (target.weight(mamba) == 0).float().mean().item()
        assert values[target.layer, names.index(target.component)] == pytest.approx(share)
    assert not np.isnan(values).any()


def test_figures_are_png_files_with_something_on_them(report, tmp_path):
    drawn = draw_figures(report, tmp_path / "figures")
    assert [path.name for path in drawn] == ["sparsity.png", "quality.png"]
    for path in drawn:
        assert imread(path).std() > 0.01


INFINITE = {"after": (159.0, math.inf), "before": (math.inf, 2.0), "both": (math.inf, math.inf)}


@pytest.mark.parametrize("values", INFINITE.values(), ids=INFINITE)
def test_infinite_perplexities_are_drawn_and_named(report, tmp_path, values):
    before, after = (
        replace(found[0], perplexity=value, word_perplexity=value)
        for found, value in zip((report.before, report.after), values, strict=True)
    )
    report = replace(report, before=(before,), after=(after,))
    axes = _quality(report).axes[0]
    names = [text.get_text() for text in axes.texts]
    assert names == ["infinite" if math.isinf(value) else f"{value:.1f}" for value in values]
    heights = [bar.get_height() for bar in axes.patches]
    assert all(map(math.isfinite, heights)) and axes.get_ylim()[1] > max(heights) > 0
    assert [bar.get_hatch() is not None for bar in axes.patches] == [math.isinf(value) for value in values]
    if math.isinf(values[0]) != math.isinf(values[1]):
        finite, infinite = sorted(heights)
        assert infinite == 2 * finite
    assert all(imread(path).std() > 0.01 for path in draw_figures(report, tmp_path))
    assert "inf" in render_card(report)
    metrics = {result.metric_type for result in card_data(report, "a/b").eval_results}
    assert ("perplexity" in metrics) == math.isfinite(values[1]) and "bits_per_byte" in metrics


def test_an_analysis_of_infinite_and_undefined_losses_is_drawn(tmp_path):
    curves = tuple(Curve(name=name, weights=8, rises=(0.1, math.inf, math.nan)) for name in ("in_proj", "x_proj"))
    found = Analysis(
        text="t", dense_loss=math.inf, levels=(0.1, 0.5, 0.9), components=curves, blocks=curves, together=()
    )
    assert imread(draw_analysis(found, tmp_path)).std() > 0.01
