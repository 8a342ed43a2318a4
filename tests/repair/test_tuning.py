"""What pruning left of a model moves towards what the dense one predicts; zeros and embeddings stay."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCABULARY, build_model
from torch.nn import functional as F

from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.repair import tuning
from hf_mamba_prune.repair.tuning import tune_kept


@pytest.mark.parametrize("case", ("mamba", "mamba2", "falcon_mamba"))
def test_the_divergence_falls_and_zeros_stay(case):
    sequences = torch.randint(0, VOCABULARY, (40, 16), generator=torch.Generator().manual_seed(0))
    model = build_model(case).eval()
    dense, targets = copy.deepcopy(model), find_targets(model)
    with torch.no_grad():
        for target in targets:
            weight = target.weight(model)
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    zeros = {target.name: target.weight(model) == 0 for target in targets}
    embeddings = model.get_input_embeddings().weight.clone()

    def divergence() -> float:
        with torch.no_grad():
            wanted, found = dense(sequences).logits.log_softmax(-1), model(sequences).logits.log_softmax(-1)
        return float(F.kl_div(found, wanted, log_target=True, reduction="sum")) / sequences.numel()

    before = divergence()
    tune_kept(model, dense, list(zeros), sequences.repeat(4, 1), dtype=torch.bfloat16, seed=0)
    assert divergence() < 0.9 * before
    assert all(torch.equal(target.weight(model) == 0, zeros[target.name]) for target in targets)
    assert all(
        torch.equal(weight, weight.bfloat16().float()) for name, weight in model.named_parameters() if "norm" in name
    )
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_lost_little_is_moved_little(monkeypatch):
    sequences = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
    rates = []

    def watched(model, dense, moved, sequences, **rest):
        (rate,) = {own.rate for own in moved if isinstance(own, tuning._Kept)}
        rates.append(rate)

    monkeypatch.setattr(tuning, "tune", watched)
    for lost in (0.0, 0.04, 0.16, 100.0):
        monkeypatch.setattr(tuning, "_divergence", lambda *_, lost=lost: torch.tensor(lost))
        model = build_model("mamba").eval()
        names = [target.name for target in find_targets(model)]
        tune_kept(model, model, names, sequences, dtype=torch.float32, seed=0)
    slowest, some, twice, fastest = rates
    assert 0 < slowest < some and twice == pytest.approx(2 * some) and twice < fastest < 0.01


def test_a_divergence_that_is_not_finite_is_said():
    sequences = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(0))
    model, dense = build_model("mamba").eval(), build_model("mamba").eval()
    dense.get_input_embeddings().weight.data[:] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        tune_kept(model, dense, [find_targets(model)[0].name], sequences, dtype=torch.float32, seed=0)
