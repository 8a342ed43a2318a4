"""What the tests of packed models share: a sparse model, packed and loaded, and its tokens one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURE_CASES, VOCABULARY, build_model, build_tokenizer

from hf_mamba_prune import PruningConfig, native
from hf_mamba_prune.bits.model import round_model
from hf_mamba_prune.codings import grids
from hf_mamba_prune.codings.blobs import from_blob
from hf_mamba_prune.codings.storage import in_memory, to_stored
from hf_mamba_prune.codings.tensors import MASKED_CODES, pack_bits
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.native.codes import LEVELS, WIDTHS, decode_planes, encode_planes, in_plane_order, levels_of
from hf_mamba_prune.native.packed import kept_of
from hf_mamba_prune.packed.checkpoint import load_packed, write_packed_model

CASES = pytest.mark.parametrize("case", ARCHITECTURE_CASES)
needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
SHARD = "model.safetensors"
OLDER_LEVELS = 30
ROUNDED: dict[str, dict[str, float | int]] = {"mixed": {"bits": 3.0}, "masked": {"sparsity": 0.7, "code_bits": 2}}
"""Ways to round: codes of each row's own width, and codes of one width under masks."""


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


def save_rounded(folder: Path, case: str, way: str, dtype: torch.dtype = torch.float32):
    """The same of a rounded model, by a name of `ROUNDED`."""
    model = sparse_model(case) if way == "masked" else build_model(case)
    round_model(model, find_targets(model), tokens(12, 2), PruningConfig(**ROUNDED[way]), dtype)
    write_packed_model(folder, model, build_tokenizer(), dtype, "rounded")
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


def with_even_levels(blob: torch.Tensor) -> torch.Tensor:
    """What a file holds, with the levels that codes of 5 bits had up to version 4."""
    blob = in_memory(blob).clone()
    grid = from_blob(blob).grid
    if grid is not None:
        grid.levels[OLDER_LEVELS:] = torch.arange(-16, 16)
    return to_stored(blob)


def of_version_4(blob: torch.Tensor) -> torch.Tensor:
    """A weight with even levels as version 4 wrote it."""
    blob = in_memory(blob).clone()
    grid = from_blob(blob).grid
    if grid is not None:
        grid.levels[OLDER_LEVELS:] = 0
    blob[:8] = torch.tensor([*b"HMPpack4"])
    return blob


def of_version_3(blob: torch.Tensor) -> torch.Tensor:
    """The same as versions 2 and 3 wrote it: masks of codes, and so the codes, in the order of columns."""
    blob = in_memory(blob).clone()
    packed = from_blob(blob)
    if packed.grid is not None:
        packed.grid.levels[OLDER_LEVELS:] = 0
    if packed.coding in MASKED_CODES:
        bits, columns = MASKED_CODES[packed.coding], packed.mask.shape[1] * 8
        own, codes = kept_of(packed.mask, columns), torch.zeros(packed.shape[0], columns, dtype=torch.uint8)
        codes[own] = decode_planes(packed.values, bits, int(own.sum()))
        keep = in_plane_order(own)
        packed.mask.copy_(pack_bits(keep))
        packed.values.copy_(encode_planes(in_plane_order(codes)[keep], bits))
    blob[:8] = torch.tensor([*b"HMPpack2"])
    return blob


def coded_tensor(shape: tuple[int, int], bits: int | str, masked: bool, seed: int = 0):
    """A random weight in codes, `mixed` widths or one, and what it stands for, (out, in) float32."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    keep = torch.rand(shape, generator=generator) < 0.5 if masked else torch.ones(shape, dtype=torch.bool)
    if masked:  # words that are full, and rows that are empty
        keep[1::7], keep[2::7] = True, False
    widths = torch.arange(rows) % len(WIDTHS) if bits == "mixed" else torch.full((rows,), int(bits))
    codes = (torch.randint(0, 64, shape, generator=generator) % (1 << widths)[:, None]).to(torch.uint8)
    levels = torch.randint(-32, 32, (LEVELS,), generator=generator).to(torch.int8)
    scales = (torch.rand(rows, generator=generator) + 0.5).bfloat16()
    column_scales = (torch.rand(columns, generator=generator) + 0.5).bfloat16()
    weight = torch.zeros(shape)
    for width in set(widths.tolist()) - {0}:
        own = widths == width
        weight[own] = levels_of(codes[own], width, levels).float()
    weight = weight * keep * scales.float()[:, None] * column_scales.float()
    packed = grids.coded_tensor(
        codes,
        widths.to(torch.uint8),
        levels,
        scales=scales,
        column_scales=column_scales,
        dtype=torch.float32,
        keep=keep if masked else None,
    )
    return packed, weight
