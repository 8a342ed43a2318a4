"""What pruning left of a model moves towards what the dense one predicts; zeros and embeddings stay."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCABULARY, build_model
from torch.nn import functional as F

from hf_mamba_prune.models.targets import find_targets
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
