"""Checkpoints of the first packed format: `pack` writes them anew, bit for bit; all else names the way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from conftest import run
from packed_cases import CASES, load, sparse_model
from safetensors.torch import save_file
from tiny_models import build_tokenizer
from torch import nn

from hf_mamba_prune.codings.tensors import pack_tensor, unpack_tensor

SHARD = "packed-00001-of-00001.safetensors"


def write_version_1(folder: Path, case: str, coding: str | None = None) -> dict[str, torch.Tensor]:
    """A checkpoint as the first version wrote it; the weights that it stands for."""
    model = sparse_model(case)
    folder.mkdir()
    held, entries, wanted = {}, {}, {}
    tied = {"lm_head.weight": "backbone.embeddings.weight"} if model.config.tie_word_embeddings else {}
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        weight = weight.bfloat16()
        if not (name.endswith(".weight") and isinstance(owner, nn.Linear | nn.Embedding)):
            held[name] = wanted[name] = weight
            entries[name] = {"shape": list(weight.shape), "dtype": "bfloat16", "file": SHARD}
            continue
        packed = pack_tensor(weight, coding)
        wanted[name] = unpack_tensor(packed)
        columns = -(-weight.shape[1] // 8)
        parts = {"mask": packed.mask, "values": packed.values, "scales": packed.scales}
        parts = {part: tensor for part, tensor in parts.items() if tensor is not None}
        if "mask" in parts:
            parts["mask"] = parts["mask"][:, :columns].contiguous()
        held |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        shown = {"shape": list(weight.shape), "dtype": "bfloat16", "coding": packed.coding, "parts": list(parts)}
        entries[name] = shown | {"file": SHARD}
    save_file(held, folder / SHARD)
    data = (folder / SHARD).read_bytes()
    files = {SHARD: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    index = {"format": "hf-mamba-prune-packed", "version": 1, "files": files, "tied": tied, "tensors": entries}
    (folder / "packed.json").write_text(json.dumps(index))
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"dtype": "bfloat16"}
    kind = {"model_type": f"packed_{model.config.model_type}", "architectures": [f"Packed{type(model).__name__}"]}
    (folder / "config.json").write_text(json.dumps(config | kind))
    model.generation_config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return wanted | {name: wanted[source] for name, source in tied.items()}


@CASES
@pytest.mark.parametrize("coding", [None, "int8"])
def test_pack_converts_it_bit_for_bit(tmp_path, case, coding):
    wanted = write_version_1(tmp_path / "old", case, coding)
    assert run("pack", str(tmp_path / "old"), "--output", str(tmp_path / "new"), "--quiet") == 0
    found = load(tmp_path / "new", unpack=True).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) and tensor.dtype == torch.bfloat16 for name, tensor in found.items())
    assert load(tmp_path / "new").config.quantization_config.values == (coding or "auto")
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_commands_name_the_way_and_damage_is_refused(tmp_path, capsys):
    write_version_1(tmp_path / "old", "mamba")
    assert run("evaluate", str(tmp_path / "old"), "--eval", "text.txt") == 2
    assert "`hf-mamba-prune pack" in capsys.readouterr().err
    data = bytearray((tmp_path / "old" / SHARD).read_bytes())
    data[-9] ^= 16
    (tmp_path / "old" / SHARD).write_bytes(data)
    assert run("pack", str(tmp_path / "old"), "--output", str(tmp_path / "new")) == 2
    assert "does not have its checksum" in capsys.readouterr().err and not (tmp_path / "new").exists()
