"""A packed checkpoint that was changed, cut or mixed up is refused with the reason; so it is by plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packed_cases import SHARD, load, save, tokens
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hf_mamba_prune.packed.index import INDEX_NAME, sha256_of

NAME = "backbone.layers.0.mixer.in_proj.weight"


def damage_bit(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[len(data) // 2] ^= 16
    (folder / SHARD).write_bytes(data)


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def describe(folder: Path, **values: object) -> None:
    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    edit_config(folder, quantization_config=described | values)


def rewrite(folder: Path, change) -> None:
    """Other tensors under the old index."""
    with safe_open(folder / SHARD, framework="pt") as shard:
        tensors, metadata = {name: shard.get_tensor(name) for name in shard.keys()}, shard.metadata()
    change(tensors)
    save_file(tensors, folder / SHARD, metadata)


def edit_index(folder: Path, seal: bool, change) -> None:
    """Another index; with `seal` config.json holds its checksum."""
    with safe_open(folder / SHARD, framework="pt") as shard:
        tensors, metadata = {name: shard.get_tensor(name) for name in shard.keys()}, shard.metadata()
    index = json.loads(tensors[INDEX_NAME].numpy().tobytes())
    change(index)
    tensors[INDEX_NAME] = torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8)
    save_file(tensors, folder / SHARD, metadata)
    if seal:
        describe(folder, sha256=sha256_of(tensors[INDEX_NAME]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_bit, "in model.safetensors does not have its checksum"),
        (lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-100]), "was cut short"),
        (lambda p: describe(p, version=7), "version 7 of the packed format and this is 6"),
        (lambda p: describe(p, version=1), "version 1 of the packed format and this is 6"),
        (lambda p: describe(p, sha256="0" * 64), "were not written together"),
        (lambda p: describe(p, bits=4), "does not take {'bits': 4}"),
        (lambda p: describe(p, dtype="float64"), "does not take .*float64"),
        (lambda p: describe(p, dtype="bfloat16"), "says dtype='bfloat16', and the weights were packed with 'float32'"),
        (
            lambda p: edit_config(p, hidden_act="gelu"),
            "says hidden_act='gelu', and the weights were packed with 'silu'",
        ),
        (lambda p: edit_config(p, vocab_size=300), "says vocab_size=300, and the weights were packed with 264"),
        (lambda p: edit_config(p, num_hidden_layers=3), "says num_hidden_layers=3"),
        (lambda p: edit_config(p, layer_norm_epsilon=1.0), "says layer_norm_epsilon=1.0"),
        (lambda p: rewrite(p, lambda t: t.pop(NAME)), f"lack 1 tensors, such as {NAME}"),
        (lambda p: rewrite(p, lambda t: t.pop(INDEX_NAME)), "were not written together"),
        (lambda p: rewrite(p, lambda t: t.update(more=torch.ones(1))), "more in model.safetensors does not have"),
        (
            lambda p: rewrite(p, lambda t: t.update({NAME: t[NAME][:-64]})),
            f"{NAME} in model.safetensors does not have",
        ),
        (lambda p: edit_index(p, False, lambda i: i["config"].clear()), "were not written together"),
        (lambda p: edit_index(p, True, lambda i: i["sha256"].update({NAME: "0"})), "does not have its checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("unpack", (True, False))
def test_a_damaged_checkpoint_is_refused_with_the_reason(tmp_path, damage, message, unpack):
    save(tmp_path / "p")
    damage(tmp_path / "p")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "p", unpack=unpack)


def test_a_missing_shard_is_refused_by_transformers(tmp_path):
    save(tmp_path / "p")
    (tmp_path / "p" / SHARD).unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load(tmp_path / "p")


def test_shards_are_cut_read_again_and_may_not_be_mixed(tmp_path):
    save(tmp_path / "p")
    one = load(tmp_path / "p")
    one.save_pretrained(tmp_path / "small", max_shard_size=8_000)
    shards = sorted((tmp_path / "small").glob("*.safetensors"))
    assert len(shards) > 3
    assert torch.equal(one(tokens(5)).logits, load(tmp_path / "small")(tokens(5)).logits)
    save(tmp_path / "p", dtype=torch.bfloat16)
    load(tmp_path / "p").save_pretrained(tmp_path / "other", max_shard_size=5_000)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    path = tmp_path / "small" / "model.safetensors.index.json"
    path.write_text(json.dumps(index | {"weight_map": {name: shards[0].name for name in index["weight_map"]}}))
    with pytest.raises(ValueError, match="the shards lack|were not written together"):
        load(tmp_path / "small")
    path.write_text(json.dumps(index))
    shards[1].write_bytes(next((tmp_path / "other").glob("*00002-of-*.safetensors")).read_bytes())
    with pytest.raises(ValueError, match="does not have its checksum"):
        load(tmp_path / "small")


STOCK = """
import sys
from transformers import AutoModelForCausalLM, MambaForCausalLM
for loader in (AutoModelForCausalLM, MambaForCausalLM):
    for folder in sys.argv[2:]:
        try:
            loader.from_pretrained(folder)
        except RuntimeError as error:
            print("refused", "ignore_mismatched_sizes" in str(error))
        else:
            sys.exit(f"{loader.__name__} made a model of {folder}")
    loader.from_pretrained(sys.argv[1])
assert "hf_mamba_prune" not in sys.modules
"""


def test_plain_transformers_refuses_packed_files_and_loads_the_dense_root(tmp_path):
    save(tmp_path / "root").save_pretrained(tmp_path / "root")
    save(tmp_path / "root" / "packed")
    load(tmp_path / "root" / "packed").save_pretrained(tmp_path / "shards", max_shard_size=20_000)
    AutoModelForCausalLM.from_pretrained(tmp_path / "root")
    folders = [str(tmp_path / "root"), str(tmp_path / "root" / "packed"), str(tmp_path / "shards")]
    done = subprocess.run([sys.executable, "-c", STOCK, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["refused", "True"] * 4
