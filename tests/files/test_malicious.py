"""A checkpoint made to do harm is refused by every command, from a folder and from the Hub, and executes nothing."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import local_hub as hubs
import pytest
import torch
from conftest import run
from local_hub import ALICE
from payload import Payload
from tiny_models import build_model, build_tokenizer

local_hub = hubs.local_hub
NAME = "backbone.layers.0.mixer.in_proj.weight"


def pickled_weights(folder: Path, trace: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({NAME: Payload(trace)}, folder / "pytorch_model.bin")


def old_pickle(folder: Path, trace: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({NAME: Payload(trace)}, protocol=2))


def pickled_original_layout(folder: Path, trace: Path) -> None:
    pickled_weights(folder, trace)
    values = {"d_model": 24, "n_layer": 2, "vocab_size": 264, "ssm_cfg": {}}
    (folder / "config.json").write_text(json.dumps(values))


def _edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remote_code(folder: Path, trace: Path) -> None:
    """A type of its own, with code beside the weights."""
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nEvil = None\n")
    _edit(
        folder / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    )


def tokenizer_code(folder: Path, trace: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nEvil = None\n")
    (folder / "tokenizer.json").unlink()
    _edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def climbing_shard(folder: Path, trace: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    index = {"metadata": {}, "weight_map": {NAME: "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def huge_header(folder: Path, trace: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2 << 30) + b"{}" * 100)


def climbing_packed_shard(folder: Path, trace: Path) -> None:
    _pack(folder)
    climbing_shard(folder, trace)


def _pack(folder: Path) -> None:
    """Turn a folder into a packed checkpoint."""
    packed = folder.parent / "packed-form"
    assert run("pack", str(folder), "--output", str(packed), "--quiet") == 0
    for path in folder.iterdir():
        path.unlink()
    for path in packed.iterdir():
        path.rename(folder / path.name)


CASES = (
    pickled_weights, old_pickle, pickled_original_layout, remote_code, tokenizer_code, climbing_shard, huge_header,
    climbing_packed_shard,
)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch, local_hub) -> Path:
    local_hub.attach(monkeypatch, tmp_path / "home", ALICE.token)
    monkeypatch.chdir(tmp_path)
    build_model("mamba").save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text("the cat in the hat\n" * 60, encoding="utf-8")
    return tmp_path


def commands(model: str) -> dict[str, tuple[str, ...]]:
    return {
        "prune": (model, "--score", "magnitude", "--no-reconstruct", "--no-eval", "--output", "out"),
        "evaluate": ("evaluate", model, "--eval", "text.txt"),
        "pack": ("pack", model, "--output", "out"),
        "generate": ("generate", model, "the cat"),
        "bench": ("bench", model, "--max-new-tokens", "3"),
    }


@pytest.mark.parametrize("make_evil", CASES, ids=lambda case: case.__name__)
def test_a_malicious_checkpoint_is_refused_and_executes_nothing(place, local_hub, capsys, make_evil: Callable):
    trace = place / "executed"
    make_evil(place / "model", trace)
    local_hub.add_model("eve/evil", place / "model")
    capsys.readouterr()
    for source in ("model", "eve/evil"):
        for name, command in commands(source).items():
            assert run(*command) in (1, 2), f"{name} {source}"
            (error,) = [
                line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-mamba-prune: error")
            ]
            assert len(error) < 500, error
            assert not trace.exists() and not Path("out").exists()


def test_the_same_commands_take_a_harmless_checkpoint(place):
    for name, command in commands("model").items():
        if name != "bench":  # it takes seconds, and loads as the others do
            assert run(*command) == 0, name
            if Path("out").exists():
                Path("out").rename(f"out-{name}")
