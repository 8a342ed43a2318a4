"""The pictures show every weight of the report and are drawn whole."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from hf_mamba_prune import Evaluation, PruningConfig, TextSource, find_targets, prune
from hf_mamba_prune.publish.figures import _sparsity_grid, draw_figures

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
