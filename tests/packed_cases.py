"""What the tests of packed models share: a sparse model, packed and loaded, and its tokens one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURE_CASES, VOCABULARY, build_model, build_tokenizer

from hf_mamba_prune import native
from hf_mamba_prune.packed.checkpoint import load_packed, write_packed_model

CASES = pytest.mark.parametrize("case", ARCHITECTURE_CASES)
needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
SHARD = "model.safetensors"


def sparse_model(case: str):
    """A model whose projections are 70 % zeros, one of them all zeros, one all kept."""
    model = build_model(case)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj.weight" in name and "layers.1.mixer.out_proj" not in name:
                weight[torch.rand(weight.shape, generator=generator) < 0.7] = 0
        model.base_model.layers[0].mixer.out_proj.weight.zero_()
    return model


def save(folder: Path, case: str = "mamba", dtype: torch.dtype = torch.float32, values: str = "auto"):
    """A packed checkpoint, and the model that it was made of with its weights rounded to `dtype`."""
    model = sparse_model(case)
    write_packed_model(folder, model, build_tokenizer(), dtype, values)
    return model.to(dtype).float()


def load(folder: Path, **options):
    return load_packed(folder, **{"unpack": False} | options)


def tokens(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def token_by_token(model, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Logits of the tokens from `start` on, each by a step of its own after a prefill."""
    cache = model(ids[:, :start], use_cache=True).cache_params
    steps = [model(ids[:, t : t + 1], cache_params=cache, use_cache=True).logits for t in range(start, ids.shape[1])]
    return torch.cat(steps, dim=1)
