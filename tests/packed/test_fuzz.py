"""Packed checkpoints damaged at random and sealed again, so that every checksum fits: refused in one sentence, or run.

Heads, blobs, config and index together, over all architectures. Under the address sanitizer it says more.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_cases import ROUNDED, SHARD, load, save, save_rounded, tokens
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURE_CASES

from hf_mamba_prune.codings.blobs import read_head
from hf_mamba_prune.codings.storage import in_memory
from hf_mamba_prune.packed.index import INDEX_NAME, sha256_of

REFUSALS = (ValueError, RuntimeError, OSError)
FIELDS = (
    "num_heads", "head_dim", "n_groups", "state_size", "conv_kernel", "expand", "intermediate_size", "time_step_rank",
    "hidden_size", "num_hidden_layers", "vocab_size", "time_step_limit", "layer_norm_epsilon", "mixer_rms_eps",
    "tie_word_embeddings", "use_bias", "use_conv_bias", "hidden_act", "model_type", "packed_type",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 3, 4, 12, 24, 48, 96, 264, 2.0, 1e-5, True, None, [0.0, 100.0], [1, 0])
WORDS = {
    "hidden_act": ("gelu", "relu"),
    "model_type": ("mamba", "mamba2", "falcon_mamba"),
    "packed_type": ("mamba", "mamba2"),
}
SIZES = (-1, 0, 1, 7, 8, 24, 48, 63, 64, 65, 264, 1 << 20, 1 << 33, 1 << 62, -(1 << 63))


def change_head(blob: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Another version, or another dtype, coding, mask, scales of columns, size or count."""
    data = bytearray(blob.numpy().tobytes())
    if chance.random() < 0.1:
        data[7] = chance.choice(b"2456")
    elif chance.random() < 0.4:
        data[chance.randrange(8, 13)] = chance.choice((*range(10), 255))
    else:
        struct.pack_into("<q", data, 16 + 8 * chance.randrange(3), chance.choice(SIZES))
    return torch.frombuffer(data, dtype=torch.uint8)


def change_bytes(blob: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Some bytes of masks, scales or values."""
    blob = blob.clone()
    for _ in range(chance.randrange(1, 9)):
        blob[chance.randrange(64, len(blob))] = chance.randrange(256)
    return blob


def change_part(blob: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """One part, be it as small as the levels or the widths: a byte of it, or all of them in another order."""
    blob = blob.clone()
    try:
        head = read_head(blob, len(blob))
    except ValueError:  # it is no blob any more
        return blob
    parts = zip(head.starts()[:-1], head.lengths(), strict=True)
    start, length = chance.choice([part for part in parts if part[1]])
    if chance.random() < 0.5:
        blob[start + chance.randrange(length)] = chance.choice((0, 1, 2, 5, 6, 7, 31, 32, 127, 128, 255))
    else:
        blob[start : start + length] = blob[start : start + length].roll(chance.randrange(1, 9))
    return blob


def change_length(blob: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Cut or continued."""
    more = torch.full((64,), chance.randrange(256), dtype=torch.uint8)
    return chance.choice((blob[:-64], blob[:32], blob[:0], torch.cat([blob, more]), blob[None]))


CHANGES = {"head": change_head, "bytes": change_bytes, "part": change_part, "length": change_length}


def damage(folder: Path, chance: random.Random) -> None:
    """One to three changes, under checksums that fit."""
    tensors = load_file(folder / SHARD)
    index = json.loads(tensors.pop(INDEX_NAME).numpy().tobytes())
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    blobs = [name for name, tensor in tensors.items() if tensor.dtype == torch.uint8]
    floats = [name for name in tensors if name not in blobs]
    if chance.random() < 0.6:  # as files of version 5 hold them, where damage reaches all parts
        tensors.update({name: in_memory(tensors[name]).clone() for name in blobs})
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.choice(("head", "bytes", "part", "part", "part", "length", "swap", "float", "config"))
        name = chance.choice(blobs)
        if kind == "swap":
            other = chance.choice(blobs)
            tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
        elif kind == "float":
            own = chance.choice(floats)
            tensors[own] = chance.choice(
                (tensors[own][:1], tensors[own].double(), torch.zeros(0), tensors[own] * 1e30)
            )
        elif kind == "config":
            field = chance.choice(FIELDS)
            config[field] = index["config"][field] = chance.choice(WORDS.get(field, NUMBERS))
        else:
            change = CHANGES[kind]
            if tensors[name].dim() == 1 and len(tensors[name]) > 64:
                tensors[name] = change(tensors[name], chance).contiguous()
    index["sha256"] = {name: sha256_of(tensor) for name, tensor in tensors.items()}
    if chance.random() < 0.1:
        index.pop(chance.choice(("config", "sha256", "dtype")))
    sealed = torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8)
    config["quantization_config"] |= {"sha256": sha256_of(sealed)}
    save_file(tensors | {INDEX_NAME: sealed}, folder / SHARD, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def survive(
    folder: Path, cases: int, seed: int, rounded: Iterable[str] = tuple(ARCHITECTURE_CASES)
) -> tuple[int, int]:
    """How many of so many damaged checkpoints run, and how many are refused in one sentence.

    Half of the checkpoints are rounded ones, of these architectures.
    """
    chance = random.Random(seed)
    for case in ARCHITECTURE_CASES:
        for values in ("auto", "int8"):
            save(folder / "plain" / f"{case}-{values}", case, torch.bfloat16, values)
    for case in rounded:
        for way in ROUNDED:
            save_rounded(folder / "rounded" / f"{case}-{way}", case, way, torch.bfloat16)
    whole = [sorted(kind.iterdir()) for kind in (folder / "plain", folder / "rounded")]
    run = refused = 0
    for _ in range(cases):
        place = folder / "damaged"
        shutil.copytree(chance.choice(chance.choice(whole)), place)
        damage(place, chance)
        try:
            model = load(place, unpack=chance.random() < 0.2)
            model.generate(tokens(5, 2), max_new_tokens=3, do_sample=False)
            run += 1
        except REFUSALS as error:
            assert "\n" not in str(error).strip() and len(str(error)) > 20, f"{type(error)}: {error}"
            refused += 1
        shutil.rmtree(place)
    return run, refused


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("cases", "rounded"),
    [(60, ("mamba",)), pytest.param(2000, tuple(ARCHITECTURE_CASES), marks=pytest.mark.slow)],
    ids=("few", "many"),
)
def test_damaged_checkpoints_are_refused_or_run(tmp_path, cases, rounded):
    run, refused = survive(tmp_path, cases, cases, rounded)
    assert run + refused == cases
    assert refused > cases // 3 and run > 0
