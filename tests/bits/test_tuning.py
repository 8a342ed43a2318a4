"""Scales of a rounded model move towards what the dense one predicts, and nothing else does."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import VOCABULARY, build_model
from torch.nn import functional as F

from hf_mamba_prune import PruningConfig
from hf_mamba_prune.bits import model as rounding
from hf_mamba_prune.bits.model import round_model
from hf_mamba_prune.bits.tuning import _Scaled, tune_scales
from hf_mamba_prune.codings.grids import grids_of, put_on_grids
from hf_mamba_prune.codings.tensors import unpack_tensor
from hf_mamba_prune.models.targets import find_targets


@pytest.fixture
def sequences():
    return torch.randint(0, VOCABULARY, (40, 16), generator=torch.Generator().manual_seed(0))


def divergence(model, dense, ids) -> float:
    with torch.no_grad():
        wanted, found = dense(ids).logits.log_softmax(-1), model(ids).logits.log_softmax(-1)
    return float(F.kl_div(found, wanted, log_target=True, reduction="sum")) / ids.numel()


def untuned(sequences, monkeypatch, **wanted):
    """A rounded model whose scales are as rounding left them, its dense origin, and the grids of its projections."""
    model = build_model("mamba").eval()
    dense = copy.deepcopy(model)
    with monkeypatch.context() as patch:
        patch.setattr(rounding, "tune_scales", lambda model, dense, packed, *_, **__: dict(packed))
        round_model(model, find_targets(model), sequences, PruningConfig(**wanted), torch.float32)
    names = {target.name for target in find_targets(model)}
    return model, dense, {name: grid for name, grid in grids_of(model).items() if name in names}


def test_the_divergence_falls_and_codes_stay(sequences, monkeypatch):
    model, dense, grids = untuned(sequences, monkeypatch, bits=3.5)
    before = divergence(model, dense, sequences)
    embeddings = model.get_input_embeddings().weight.clone()
    tuned = tune_scales(model, dense, grids, sequences, dtype=torch.bfloat16, seed=0)
    put_on_grids(model, tuned)
    assert divergence(model, dense, sequences) < 0.97 * before
    for name, grid in grids.items():
        assert torch.equal(tuned[name].values, grid.values)
        assert tuned[name].bytes == grid.bytes
    assert any(not torch.equal(tuned[name].scales, grid.scales) for name, grid in grids.items())
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    skip = model.get_parameter("backbone.layers.0.mixer.D")
    assert not torch.equal(skip, dense.get_parameter("backbone.layers.0.mixer.D"))
    assert torch.equal(skip, skip.bfloat16().float())  # as it will be saved
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_many_small_steps_add_up_whatever_the_parameter_can_tell_apart(sequences, monkeypatch, dtype):
    model, _, grids = untuned(sequences[:4], monkeypatch, bits=3.5)
    name, grid = next(iter(grids.items()))
    weight = model.to(dtype).get_parameter(name)
    before, moved = weight.detach().float().clone(), _Scaled(weight, grid)
    for _ in range(100):
        moved.factors[0].add_(0.002)
        moved.show()
    torch.testing.assert_close(weight.float(), before * math.exp(0.2), rtol=0.02, atol=0)
    torch.testing.assert_close(unpack_tensor(moved.tuned()).float(), weight.float(), rtol=0.02, atol=0)


def test_masks_stay(sequences, monkeypatch):
    model = build_model("mamba").eval()
    for target in find_targets(model):
        weight = target.weight(model).data
        weight.masked_fill_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5, 0)
    zeros = {target.name: target.weight(model) == 0 for target in find_targets(model)}
    round_model(model, find_targets(model), sequences[:4], PruningConfig(sparsity=0.5, code_bits=3), torch.float32)
    for name, zero in zeros.items():
        assert (model.get_parameter(name)[zero] == 0).all()


def test_a_divergence_that_is_not_finite_is_said(sequences, monkeypatch):
    model, dense, grids = untuned(sequences[:4], monkeypatch, bits=3.5)
    dense.get_input_embeddings().weight.data[:] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        tune_scales(model, dense, grids, sequences, dtype=torch.float32, seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
