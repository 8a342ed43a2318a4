"""A checkpoint in codes of few bits where packed models are used: generated from, saved, copied, adapted, damaged."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from native_cases import distance
from packed_cases import (
    ROUNDED,
    SHARD,
    load,
    needs_kernels,
    of_version_3,
    of_version_4,
    save_rounded,
    tokens,
    with_even_levels,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_mamba_prune import PackedConfig, native
from hf_mamba_prune.codings.blobs import read_head
from hf_mamba_prune.codings.storage import in_memory
from hf_mamba_prune.native import library
from hf_mamba_prune.packed.config import VERSION
from hf_mamba_prune.packed.index import INDEX_NAME, sha256_of
from hf_mamba_prune.packed.modules import packed_modules

NAME = "backbone.layers.1.mixer.in_proj.weight"


@pytest.fixture(scope="module", params=ROUNDED)
def pair(request, tmp_path_factory) -> tuple[Any, Path]:
    """A rounded dense model and the folder with the same packed."""
    folder = tmp_path_factory.mktemp(request.param) / "p"
    return save_rounded(folder, "mamba", request.param), folder


def coding_of(model: Any) -> str:
    return model.get_submodule(NAME.removesuffix(".weight")).matrix.coding


def test_generating_follows_the_unpacked_model(pair, monkeypatch):
    dense, folder = pair
    packed, unpacked = load(folder), load(folder, unpack=True)
    assert coding_of(packed) in ("mixed", "int2")
    assert all(torch.equal(x, dense.state_dict()[name]) for name, x in unpacked.state_dict().items())
    options = dict(max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    found = packed.generate(tokens(6, 2), **options)
    with torch.no_grad():
        expected = unpacked(found.sequences).logits[:, 5:-1]  # the tokens that were chosen, and what they follow from
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # or a prompt is read in bfloat16
    with native.force_instruction_set("portable") if native.available() else nullcontext():
        exact = packed.generate(tokens(6, 2), **options)
    with torch.no_grad():
        same = unpacked(exact.sequences).logits[:, 5:-1]
    assert distance(torch.stack(exact.logits, dim=1), same) < 1e-3
    assert distance(torch.stack(found.logits, dim=1), expected) < 0.05  # vectors are rounded to int8 on the way


def test_saving_again_gives_equal_bytes(pair, tmp_path):
    _, folder = pair
    load(folder).save_pretrained(tmp_path / "again")
    load(tmp_path / "again").save_pretrained(tmp_path / "once more")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        first, second, third = (path / name for path in (folder, tmp_path / "again", tmp_path / "once more"))
        assert first.read_bytes() == second.read_bytes() == third.read_bytes(), name


def rewritten(source: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor], version: int) -> Path:
    """The checkpoint of other blobs and of another version, with checksums that fit."""
    shutil.copytree(source, folder)
    tensors, config = load_file(folder / SHARD), json.loads((folder / "config.json").read_text())
    index = json.loads(tensors.pop(INDEX_NAME).numpy().tobytes())
    tensors = {name: change(own) if own.dtype == torch.uint8 else own for name, own in tensors.items()}
    index["sha256"] = {name: sha256_of(tensor) for name, tensor in tensors.items()}
    sealed = torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8)
    config["quantization_config"] |= {"sha256": sha256_of(sealed), "version": version}
    save_file(tensors | {INDEX_NAME: sealed}, folder / SHARD, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("version", "change"), [(3, of_version_3), (4, of_version_4)])
def test_an_older_checkpoint_becomes_one_of_now(pair, version, change, tmp_path):
    new = rewritten(pair[1], tmp_path / "new", with_even_levels, VERSION)
    old = rewritten(new, tmp_path / "old", change, version)
    wanted = load(new, unpack=True).state_dict()
    assert all(torch.equal(own, wanted[name]) for name, own in load(old, unpack=True).state_dict().items())
    load(old).save_pretrained(tmp_path / "now")
    found, written = load_file(tmp_path / "now" / SHARD), load_file(new / SHARD)
    assert all(torch.equal(found[name], own) for name, own in written.items() if name != INDEX_NAME)
    described = json.loads((tmp_path / "now" / "config.json").read_text())["quantization_config"]
    assert described["version"] == VERSION


def test_blobs_of_an_older_version_are_taken_as_new_ones(pair, tmp_path):
    new = load(rewritten(pair[1], tmp_path / "new", with_even_levels, VERSION))
    state = new.state_dict()
    packed = load(pair[1])
    packed.load_state_dict(
        {name: of_version_3(own) if own.dtype == torch.uint8 else own for name, own in state.items()}
    )
    assert all(torch.equal(own, state[name]) for name, own in packed.state_dict().items())


def test_copies_compute_the_same(pair):
    _, folder = pair
    packed = load(folder)
    expected = packed(tokens(7)).logits
    copies = [copy.deepcopy(packed), pickle.loads(pickle.dumps(packed)), load(folder)]
    copies[2].load_state_dict(packed.state_dict())
    for other in copies:
        assert coding_of(other) == coding_of(packed) and torch.equal(other(tokens(7)).logits, expected)


def test_adapters_learn_on_a_base_that_stays(pair):
    peft = pytest.importorskip("peft")
    packed = load(pair[1])
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    model = peft.get_peft_model(packed, peft.LoraConfig(r=4, target_modules=["in_proj", "x_proj"]))
    optimizer = torch.optim.AdamW([own for own in model.parameters() if own.requires_grad], lr=0.02)
    losses = []
    for _ in range(10):
        losses.append(model(tokens(12), labels=tokens(12)).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    after = {name.replace("base_layer.", ""): tensor for name, tensor in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_was_not_rounded_is_not_packed_as_if(pair, tmp_path):
    load(pair[1], unpack=True).save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="no weight of this model is"):
        load_dense(tmp_path / "dense", "rounded")
    assert coding_of(load_dense(tmp_path / "dense", "auto")) == "float32"


def load_dense(folder: Path, values: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=PackedConfig(values=values))


MASK, LEVELS, WIDTHS = 0, 3, 4
"""Parts of a blob that are damaged, in their order."""


@needs_kernels
@pytest.mark.parametrize("reader", ["kernels", "twin", "unpacked"])
@pytest.mark.parametrize(
    ("pair", "part", "value", "message"),
    [
        ("masked", MASK, 255, "beyond the last|values"),
        ("masked", LEVELS, 32, "expected -32 to 31"),
        ("mixed", LEVELS, 32, "expected -32 to 31"),
        ("mixed", WIDTHS, 7, "widths of codes are|values"),
        ("mixed", WIDTHS, 6, "values"),
    ],
    indirect=["pair"],
)
def test_sealed_damage_is_refused_by_every_reader(pair, tmp_path, monkeypatch, part, value, message, reader):
    shutil.copytree(pair[1], tmp_path / "p")
    tensors = load_file(tmp_path / "p" / SHARD)
    blob = tensors[NAME] = in_memory(tensors[NAME]).clone()
    head = read_head(blob, len(blob))
    start, length = head.starts()[part], head.lengths()[part]
    blob[start : start + length] = value
    index = json.loads(tensors.pop(INDEX_NAME).numpy().tobytes())
    index["sha256"][NAME] = sha256_of(blob)
    sealed = torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8)
    save_file(tensors | {INDEX_NAME: sealed}, tmp_path / "p" / SHARD, {"format": "pt"})
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    config["quantization_config"]["sha256"] = sha256_of(sealed)
    (tmp_path / "p" / "config.json").write_text(json.dumps(config))
    if reader == "twin":
        monkeypatch.setattr(library, "_kernels", None)
    with pytest.raises(ValueError, match=rf"{NAME}: .*({message})"):
        packed_modules(load(tmp_path / "p", unpack=reader == "unpacked"))
