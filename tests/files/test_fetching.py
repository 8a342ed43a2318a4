"""What is downloaded of a repository is what is read, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from local_hub import ALICE
from original_checkpoints import write_original
from safetensors.torch import load_file

from hf_mamba_prune.files.loading import load_model, load_skeleton, load_tokenizer


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    return local_hub


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fetched(hub) -> set[str]:
    """Names of the files that were asked for so far, with their folders."""
    paths = (seen.path.split("?")[0] for seen in hub.requests if "/resolve/" in seen.path)
    return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}


BESIDE = {
    name: b"{}"
    for name in (
        "consolidated.safetensors", "adapter_model.safetensors", "model.fp16.safetensors", "optimizer.pt",
        "model.gguf", "training_args.bin", "checkpoint-500/config.json", "checkpoint-500/model.safetensors",
        "onnx/config.json",
        "checkpoint-500/tokenizer.json", "packed/config.json", "packed/model.safetensors", "runs/a/README.md",
        "original/params.json", "pytorch_model-00001-of-00002.bin",
    )
}  # fmt: skip
MARK = {"packed/config.json"}
"""Says that there is a packed form beside the model."""
SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def folder(mamba, tokenizer, tmp_path) -> Path:
    mamba.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def shards(mamba, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    mamba.save_pretrained(folder, max_shard_size="20KB")


@pytest.mark.parametrize("sharded", [False, True])
def test_of_a_model_the_weights_that_transformers_reads(hub, folder, mamba, sharded):
    if sharded:
        shards(mamba, folder)
    hub.add_model("alice/model", BESIDE | {"pytorch_model.bin": b"x"} | content(folder))
    load_skeleton("alice/model")
    small = {name for name in content(folder) if not name.endswith("safetensors")}
    assert fetched(hub) == small | MARK and SMALL <= small
    loaded = load_model("alice/model")
    assert fetched(hub) == set(content(folder)) | MARK and (len(content(folder)) > 8) is sharded
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), mamba.parameters(), strict=True))


def test_a_pickle_where_there_is_nothing_else(hub, folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    hub.add_model("alice/model", BESIDE | content(folder))
    load_model("alice/model")
    assert fetched(hub) == set(content(folder)) | MARK


def test_the_original_layout_with_a_pickle_and_somebody_s_safetensors(hub, mamba, tokenizer, tmp_path):
    """The pickle was never fetched where there was any safetensors file."""
    write_original(tmp_path / "original", mamba, tokenizer)
    hub.add_model("alice/original", BESIDE | content(tmp_path / "original"))
    load_model("alice/original")
    assert "pytorch_model.bin" in fetched(hub) and "consolidated.safetensors" not in fetched(hub)


def test_of_a_tokenizer_the_small_files_at_the_root(hub, folder):
    hub.add_model("alice/model", BESIDE | content(folder))
    load_tokenizer("alice/model")
    assert fetched(hub) == {name for name in content(folder) if not name.endswith("safetensors")}


def test_an_index_that_names_a_pattern_fetches_no_more(hub, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "*"}}')
    hub.add_model("alice/model", BESIDE | content(folder))
    with pytest.raises(ValueError, match="cannot be loaded|describes"):
        load_model("alice/model")
    assert fetched(hub) == set(content(folder)) | MARK
