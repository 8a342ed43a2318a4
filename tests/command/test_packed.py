"""The commands around packed checkpoints, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import run
from packed_cases import save
from tiny_models import build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from hf_mamba_prune import PruningReport, native
from hf_mamba_prune.packed.checkpoint import is_packed, load_packed

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels are not built or switched off")
TEXT = "the cat in the hat sat on the mat and then it ran in a line\n" * 60


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny sparse model and a text, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    model = build_model("mamba")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                weight[:, ::3], weight[:, 1::3] = 0, 0
    model.save_pretrained("model")
    build_tokenizer().save_pretrained("model")
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_pack_and_unpack_give_the_same_weights(place, capsys):
    assert run("pack", "model", "--output", "model/packed", "--json") == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["output"] == "model/packed"
    assert sizes["packed_bytes"] < 0.8 * sizes["dense_bytes"]
    assert run("pack", "model", "--output", "model/packed") == 2
    assert "not empty" in capsys.readouterr().err
    assert run("pack", "model", "--output", "model/packed", "--overwrite") == 0
    assert run("unpack", "model/packed", "--output", "again") == 0
    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in ("model", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_the_folder_of_another_stays_as_it_is_and_that_of_a_result_takes_its_packed_form(place, capsys):
    before = sorted(Path("model").iterdir())
    assert run("pack", "model") == 0
    said = capsys.readouterr().out
    assert is_packed(Path("model-packed")) and "is zero" not in said and sorted(Path("model").iterdir()) == before
    Path("model/report.json").write_text("{}", encoding="utf-8")
    assert run("pack", "model", "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == "model/packed"


def test_a_model_without_zeros_is_packed_with_a_remark(place, capsys):
    build_model("mamba").save_pretrained("dense")
    build_tokenizer().save_pretrained("dense")
    assert run("pack", "dense") == 0
    assert "No weight of this model is zero" in " ".join(capsys.readouterr().out.split())
    assert run("pack", "dense", "--output", "again", "--json") == 0
    assert json.loads(capsys.readouterr().out)["zeros"] == 0


def test_int8_is_smaller_and_another_value_is_refused(place, capsys):
    assert run("pack", "model", "--output", "whole", "--quiet") == 0
    assert run("pack", "model", "--values", "int8", "--output", "narrow", "--quiet") == 0
    sizes = [sum(path.stat().st_size for path in Path(name).glob("*.safetensors")) for name in ("whole", "narrow")]
    assert sizes[1] < 0.6 * sizes[0]
    assert run("pack", "model", "--values", "int5", "--output", "none") == 2
    assert "expected one of auto, int8" in capsys.readouterr().err
    assert not Path("none").exists()


def test_what_is_not_packed_is_not_unpacked(place, capsys):
    assert run("unpack", "model", "--output", "again") == 2
    assert "is not a packed checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_ends_in_one_line(place, capsys):
    save(Path("packed"))
    capsys.readouterr()
    shard = next(Path("packed").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    for command in (
        ("unpack", "packed", "--output", "out"),
        ("generate", "packed", "the cat"),
        ("evaluate", "packed", "--eval", "text.txt"),
    ):
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert "cut short" in error and error.count("\n") == 1


def test_generate_writes_text_and_its_speed(place, capsys):
    assert run("pack", "model", "--output", "model/packed", "--quiet") == 0
    shown = {}
    for name, more in {"packed": (), "dense": ("--dense",)}.items():
        assert run("generate", "model", "the cat", "-n", "8", "--threads", str(torch.get_num_threads()), *more) == 0
        shown[name] = capsys.readouterr()
        kind = name if native.available() else "dense"
        assert "tokens a second" in shown[name].err and f"({kind}, " in shown[name].err
    assert shown["packed"].out.startswith("the cat")
    assert shown["packed"].out == shown["dense"].out
    assert run("generate", "model", "the cat", "-n", "8", "--temperature", "2", "--seed", "1") == 0
    assert run("generate", "model", "") == 2
    assert "the prompt is empty" in capsys.readouterr().err
    assert run("generate", "model", "the cat", "--threads", "0") == 2


def test_a_packed_model_is_evaluated_and_described_like_its_dense_one(place, capsys):
    assert run("pack", "model", "--output", "model/packed", "--quiet") == 0
    found = []
    for source in ("model", "model/packed"):
        assert run("evaluate", source, "--eval", "text.txt", "--window", "32", "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
        assert run("info", source, "--json") == 0
        found[-1]["info"] = json.loads(capsys.readouterr().out)
    assert found[0]["metrics"][0]["perplexity"] == found[1]["metrics"][0]["perplexity"]
    assert found[0]["sparsity"] == found[1]["sparsity"]
    assert found[0]["info"] == found[1]["info"]


@needs_kernels
def test_pruning_packs_and_measures(place, speeds_here, capsys):
    options = ("--score", "magnitude", "--no-reconstruct", "--no-eval", "--sparsity", "0.8", "--output", "out")
    assert run("model", *options, "--pack", "--values", "int8") == 0
    assert "packed" in capsys.readouterr().out
    speeds = PruningReport.load("out").speeds
    assert [speed.name for speed in speeds] == ["dense, transformers", "dense, native kernels", "packed"]
    assert all(speed.decode_tokens_per_second > 0 and speed.prefill_tokens_per_second > 0 for speed in speeds)
    assert speeds[-1].values == "int8" and speeds[-1].file_bytes < speeds[0].file_bytes
    assert is_packed(Path("out/packed"))
    zeros = {"model": 0, "packed": 0}
    for name, folder in {"model": "out", "packed": "out/packed"}.items():
        model = load_packed(folder, unpack=True) if name == "packed" else AutoModelForCausalLM.from_pretrained(folder)
        zeros[name] = sum(int((weight == 0).sum()) for weight in model.parameters())
    assert zeros["packed"] >= zeros["model"]


@needs_kernels
def test_bench_shows_dense_and_packed_side_by_side(place, capsys):
    assert run("bench", "model", "--no-stock", "-n", "4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [speed["name"] for speed in found["speeds"]] == ["dense, native kernels", "packed"]
    assert found["hardware"]["processor"]
    assert run("bench", "model", "-n", "2") == 2
