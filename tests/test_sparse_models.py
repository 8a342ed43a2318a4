"""A model that is sparse already: what cannot be is said, and what it was is not called dense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import run
from pushing import TEXT
from tiny_models import build_model, build_tokenizer

from hf_mamba_prune import PruningReport
from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.pruning import prune
from hf_mamba_prune.publish.card import default_name, render_card

PLAIN = dict(score="magnitude", reconstruct=False)
COMMAND = ("--score", "magnitude", "--no-reconstruct", "--eval", "text.txt", "--window", "32", "--force")


def sparse(share: float):
    """A model with that share of its prunable weights at zero."""
    model = build_model("mamba")
    prune(model, build_tokenizer(), PruningConfig(share, **PLAIN))
    return model


def zeros(model) -> int:
    return sum(int((target.weight(model) == 0).sum()) for target in find_targets(model))


@pytest.mark.parametrize("allocation", ["global", "uniform", "per-row", "owl"])
def test_fewer_zeros_than_there_are_is_refused_before_anything_happens(allocation):
    model = sparse(0.6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"are zero already, 60.0%, which is more than a sparsity of 0.5 asks for"):
        prune(model, build_tokenizer(), PruningConfig(0.5, allocation=allocation, **PLAIN))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("share", [0.6, 0.7])
def test_as_many_or_more_are_reached_exactly(share):
    model = sparse(0.6)
    size = sum(target.size for target in find_targets(model))
    report = prune(model, build_tokenizer(), PruningConfig(share, **PLAIN))
    assert zeros(model) == report.sparsity.prunable.zeros == round(share * size)


def test_a_few_zeros_by_chance_and_a_pattern_are_no_reason_to_refuse():
    model = sparse(0.6)
    weight = next(iter(find_targets(model))).weight(model)
    with torch.no_grad():
        weight[weight != 0] = torch.where(torch.arange(int((weight != 0).sum())) < 3, 0.0, weight[weight != 0])
    prune(model, build_tokenizer(), PruningConfig(0.6, **PLAIN))
    report = prune(sparse(0.6), build_tokenizer(), PruningConfig(pattern="2:4", **PLAIN))
    assert report.sparsity.prunable.sparsity > 0.6
    assert default_name(report).endswith(f"-pruned-{round(100 * report.sparsity.prunable.sparsity)}")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sparse(0.5).save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_the_command_says_so_and_writes_nothing(place, capsys):
    assert run("model", "--sparsity", "0.4", *COMMAND, "--output", "out") == 2
    assert "nothing would be removed. Ask for more, or take the dense model." in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_sparse_parent_is_not_called_dense(place, capsys):
    assert run("model", "--sparsity", "0.7", *COMMAND, "--output", "out") == 0
    shown = capsys.readouterr().out
    report = PruningReport.load("out")
    assert report.parent == "parent" and "dense" not in shown.split("Where the zeros are")[0]
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "dense" not in card.replace("sparse and dense", "") and "| text | metric | parent | pruned | kept |" in card
    assert "50.00% of the prunable weights of its parent were zero already." in card
    assert "perplexity (parent: " in card and card == render_card(report)
